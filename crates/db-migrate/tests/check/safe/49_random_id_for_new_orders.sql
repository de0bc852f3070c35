-- New orders get an id that cannot be guessed; old ones follow later in steps.
alter table orders add column public_id uuid;
alter table orders alter column public_id set default gen_random_uuid();
