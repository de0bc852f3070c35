drop table sealing_key_holders;
drop table sealing_keys;
