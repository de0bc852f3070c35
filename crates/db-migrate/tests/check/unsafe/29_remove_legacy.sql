-- Nothing of the old shop is needed any more.
drop schema if exists legacy cascade;
