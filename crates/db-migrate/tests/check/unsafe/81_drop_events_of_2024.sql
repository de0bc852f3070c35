-- Nobody looks at the events of 2024.
drop table events_2024;
