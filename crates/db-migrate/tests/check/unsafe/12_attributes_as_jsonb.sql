-- Let us query product attributes by key.
alter table products
    alter column attributes drop default,
    alter column attributes type jsonb using attributes::jsonb,
    alter column attributes set default '{}'::jsonb;
