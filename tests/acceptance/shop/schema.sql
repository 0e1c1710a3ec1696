create table orders (
    org_id text not null,
    number integer not null,
    payment text not null,
    primary key (org_id, number)
);
create table mails (org_id text not null, number integer not null, text text not null);
create index on mails (org_id, number);
select pgworker.protect_table('orders');
select pgworker.protect_table('mails');
