-- Questions about products and the answers to them.
create table questions (id bigint primary key, body text not null);
create table answers (id bigint primary key, question_id bigint, body text not null);
alter table answers add constraint answers_question_id_fkey foreign key (question_id) references questions (id);
alter table answers alter column question_id set not null;
