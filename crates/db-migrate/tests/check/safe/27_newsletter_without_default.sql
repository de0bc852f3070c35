-- Not to have been asked is neither yes nor no.
alter table customers alter column newsletter drop default;
