-- Add the missing category titles by way of a helping view.
create view bare_categories as select id, slug from categories where title = '';
insert into categories (slug, title)
    select slug || '-copy', 'Copy' from bare_categories;
drop view bare_categories;
