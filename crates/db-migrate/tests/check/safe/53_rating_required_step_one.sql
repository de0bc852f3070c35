-- From now on a rating must be given; old rows are looked at later.
alter table suppliers add constraint suppliers_rating_present check (rating is not null) not valid;
