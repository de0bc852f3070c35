-- From now on a payment must say when it was made.
create function require_paid_at() returns trigger language plpgsql as $$
begin
    if new.paid_at is null then
        raise exception 'a payment needs a date';
    end if;
    return new;
end
$$;
create trigger payments_need_date before insert on payments
    for each row execute function require_paid_at();
