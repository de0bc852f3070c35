-- Three categories for the garden season.
insert into categories (slug, title)
values ('garden-tools', 'Garden tools'), ('seeds', 'Seeds'), ('pots', 'Pots')
on conflict (slug) do nothing;
