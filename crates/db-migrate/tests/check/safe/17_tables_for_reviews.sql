-- Reviews by customers, with votes on them.
create table reviews (
    id bigint generated always as identity primary key,
    author text not null,
    stars integer not null check (stars between 1 and 5),
    body text,
    written_at timestamptz not null default now(),
    unique (author, written_at)
);
create index reviews_stars_idx on reviews (stars);
create table review_votes (
    review_id bigint not null references reviews (id) on delete cascade,
    voter text not null,
    helpful boolean not null,
    primary key (review_id, voter)
);
create index review_votes_voter_idx on review_votes (voter);
