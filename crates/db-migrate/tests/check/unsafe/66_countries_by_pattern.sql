-- Names of countries begin with a capital letter.
alter domain country_name add constraint country_name_capital check (value ~ '^[A-Z]');
