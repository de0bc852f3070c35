-- Orders are kept for ten years.
create rule orders_keep as on delete to orders do instead nothing;
