-- Everybody has said yes or no to the newsletter.
update customers set newsletter = false where newsletter is null;
alter table customers alter column newsletter set not null;
