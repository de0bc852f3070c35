//! Declared columns on the tables of a real server.

use std::sync::Arc;

use db_core::encryption::{
    Column, Columns, ColumnsError, Context, Declared, EncryptionError, Key, KeyType, Keyring, Normalization,
    Sealed, Strategy,
};
use db_core::{Error, Pool};
use db_testkit::TestDb;

use crate::support::pool;

const CUSTOMERS: &str =
    "create table customers (id bigint primary key, email text unique, iban bytea, email_index bytea)";

fn keyring() -> Arc<Keyring> {
    Arc::new(Keyring::new(&Key::generate().expect("a key")))
}

async fn with(db: &TestDb, tables: &'static str) -> Pool {
    sqlx::raw_sql(tables).execute(&db.pool()).await.expect("tables");
    pool(db, 2)
}

async fn misfits(columns: &Columns, pool: &Pool) -> Vec<String> {
    match columns.check(pool).await {
        Err(ColumnsError::Misfits(misfits)) => misfits,
        other => panic!("{other:?}"),
    }
}

/// A customer's id and account.
type Row = (i64, Sealed<String>);

#[db_testkit::test]
async fn what_is_declared_as_it_is_stored_fits(db: TestDb) {
    let pool = with(
        &db,
        "create schema shop;
         create table shop.\"Orders\" (tenant text, nr integer, note_sealed bytea, note_index bytea unique,
           note_caseless bytea, primary key (nr, tenant));
         create table every (a smallint, b integer, c bigint, d uuid, v bytea, primary key (a, b, c, d)) partition by list (a);
         create table kind (e text, f varchar(9), g bool, h date, v bytea, unique (e, f, g, h));
         alter table kind alter e set not null, alter f set not null, alter g set not null, alter h set not null;",
    )
    .await;
    let columns = Columns::default();

    columns.check(&pool).await.expect("nothing is declared");
    let note = columns
        .declare::<String>("orders", "note")
        .schema("shop")
        .stored_in("Orders", "note_sealed")
        .key("tenant", KeyType::Text)
        .key("nr", KeyType::Integer)
        .text();
    let index = || columns.index("orders", "note").schema("shop");
    let _ = index().stored_in("Orders", "note_index").unique().build();
    let _ = index().stored_in("Orders", "note_caseless").normalized(Normalization::Caseless).build();
    let _ = columns
        .declare::<Vec<u8>>("every", "v")
        .key("a", KeyType::SmallInt)
        .key("b", KeyType::Integer)
        .key("c", KeyType::BigInt)
        .key("d", KeyType::Uuid)
        .bytes();
    let _ = columns
        .declare::<u32>("kind", "v")
        .key("e", KeyType::Text)
        .key("f", KeyType::Varchar)
        .key("g", KeyType::Bool)
        .key("h", KeyType::Date)
        .json();

    columns.check(&pool).await.expect("all fit");

    columns.unlock(keyring()).expect("no keys yet");
    let sealed = note.seal(("acme", 7), &"fragile".to_owned()).expect("sealed");
    assert_eq!(note.unseal(("acme", 7), &sealed).expect("its row"), "fragile");
    for elsewhere in [("acme", 8), ("acme7", 7), ("acm", 7)] {
        assert!(note.unseal(elsewhere, &sealed).is_err(), "{elsewhere:?}");
    }
    let error = note.seal(7, &"fragile".to_owned()).expect_err("half a key");
    assert_eq!(error.to_string(), "orders.note: the key of a row has 2 columns, and 1 were given");
}

#[db_testkit::test]
async fn everything_that_does_not_fit_is_one_error(db: TestDb) {
    let pool = with(
        &db,
        "create table customers (id bigint primary key, at timestamptz not null unique, price numeric not null unique,
           code char(3) not null unique, nick text unique, part integer not null, iban bytea, mail text,
           doubled bytea generated always as (iban) stored, email_index bytea);
         create unique index on customers (part) where part > 0;
         create view vip as select * from customers;",
    )
    .await;
    let columns = Columns::default();
    let declare = |column| columns.declare::<String>("customers", column);
    let _ = columns.declare::<String>("customer", "iban").key("id", KeyType::BigInt).text();
    let _ = declare("bic").key("id", KeyType::BigInt).text();
    let _ = declare("mail").key("id", KeyType::BigInt).text();
    let _ = declare("doubled").key("id", KeyType::BigInt).text();
    let _ = columns.declare::<String>("vip", "iban").key("id", KeyType::BigInt).text();
    let _ = declare("iban").text();
    for (logical, key, kind) in [
        ("a", "nr", KeyType::BigInt),
        ("b", "id", KeyType::Integer),
        ("c", "at", KeyType::Date),
        ("d", "price", KeyType::BigInt),
        ("e", "code", KeyType::Text),
        ("f", "nick", KeyType::Text),
        ("g", "part", KeyType::Integer),
    ] {
        let _ =
            columns.declare::<String>(logical, "iban").stored_in("customers", "iban").key(key, kind).text();
    }
    let _ = columns.index("customers", "mail").stored_in("customers", "email_index").unique().build();
    let _ = columns.index("customers", "nick").build();

    let misfits = misfits(&columns, &pool).await;

    let twice = |table| format!("{table}.iban: it is declared twice");
    let expected = [
        r#"customer.iban: there is no table "customer""#,
        r#"customers.bic: there is no column "bic" in "customers""#,
        r#"customers.mail: the column "mail" of "customers" is text, and has to be bytea"#,
        r#"customers.doubled: the column "doubled" of "customers" is generated"#,
        r#"vip.iban: "vip" is not a table"#,
        "customers.iban: the key of its rows is not declared",
        &twice("a"),
        r#"a.iban: there is no key column "nr" in "customers""#,
        &twice("b"),
        r#"b.iban: the key column "id" is bigint, and is declared as integer"#,
        &twice("c"),
        r#"c.iban: the key column "at" is timestamp with time zone, whose text is not the same in every session"#,
        &twice("d"),
        r#"d.iban: the key column "price" is numeric, whose text is not the same in every session"#,
        &twice("e"),
        r#"e.iban: the key column "code" is character, whose text is not the same in every session"#,
        &twice("f"),
        r#"f.iban: the key column "nick" may be null"#,
        &twice("g"),
        r#"g.iban: no unique index of "customers" is over its key alone: ["part"]"#,
        r#"index of customers.mail: no unique index of "customers" is over the column "email_index" alone"#,
        r#"index of customers.nick: the column "nick" of "customers" is text, and has to be bytea"#,
    ];
    assert_eq!(misfits, expected);
}

#[db_testkit::test]
async fn a_renamed_column_unseals_under_its_logical_name(db: TestDb) {
    let pool = with(&db, CUSTOMERS).await;
    let keys = keyring();
    let before = Columns::default();
    let iban = before.declare::<String>("customers", "iban").key("id", KeyType::BigInt).text();
    before.unlock(keys.clone()).expect("no keys yet");
    sqlx::query("insert into customers (id, iban) values (17, $1)")
        .bind(iban.seal(17, &"DE02".to_owned()).expect("sealed"))
        .execute(&pool)
        .await
        .expect("stored");
    sqlx::raw_sql("alter table customers rename iban to account; alter table customers rename to clients")
        .execute(&db.pool())
        .await
        .expect("renamed");

    assert_eq!(misfits(&before, &pool).await, [r#"customers.iban: there is no table "customers""#]);

    let after = Columns::default();
    let iban = after
        .declare::<String>("customers", "iban")
        .stored_in("clients", "account")
        .key("id", KeyType::BigInt)
        .text();
    after.unlock(keys).expect("no keys yet");
    after.check(&pool).await.expect("it fits");
    let sealed: Sealed<String> =
        sqlx::query_scalar("select account from clients").fetch_one(&pool).await.expect("a row");
    assert_eq!(iban.unseal(17, &sealed).expect("its row"), "DE02");
}

#[db_testkit::test]
async fn a_damaged_row_takes_no_other_row_of_the_list_with_it(db: TestDb) {
    let pool = with(&db, CUSTOMERS).await;
    let (columns, key) = (Columns::default(), Key::generate().expect("a key"));
    let iban = columns.declare::<String>("customers", "iban").key("id", KeyType::BigInt).text();
    columns.unlock(Arc::new(Keyring::new(&key))).expect("no keys yet");
    let ids: Vec<i64> = (1..=100).collect();
    let sealed: Vec<Sealed<String>> =
        ids.iter().map(|id| iban.seal(id, &format!("DE{id}")).expect("sealed")).collect();
    sqlx::query("insert into customers (id, iban) select * from unnest($1::bigint[], $2::bytea[])")
        .bind(&ids)
        .bind(&sealed)
        .execute(&pool)
        .await
        .expect("an array of sealed values");
    sqlx::raw_sql("update customers set iban = set_byte(iban, 40, get_byte(iban, 40) # 1) where id = 42")
        .execute(&db.pool())
        .await
        .expect("damaged");

    let rows: Vec<Row> =
        sqlx::query_as("select id, iban from customers order by id").fetch_all(&pool).await.expect("rows");
    let (shown, damaged): (Vec<_>, Vec<_>) =
        rows.iter().map(|(id, sealed)| iban.unseal(id, sealed)).partition(Result::is_ok);

    assert_eq!(shown.len(), 99);
    let error = damaged[0].as_ref().expect_err("it is damaged").to_string();
    let begins = format!("customers.iban of row 42: the value sealed under key {} was altered", key.id());
    assert!(damaged.len() == 1 && error.starts_with(&begins), "{error}");
    assert!(!error.contains("DE42"), "{error}");
}

/// Seals for the id that the row would get, and writes.
async fn upsert(pool: &Pool, iban: &Column<String>, id: i64, email: &str) -> Result<(), Error> {
    sqlx::query(
        "insert into customers (id, email, iban) values ($1, $2, $3)
         on conflict (email) do update set iban = excluded.iban",
    )
    .bind(id)
    .bind(email)
    .bind(iban.seal(id, &format!("DE{id}")).expect("sealed"))
    .execute(pool)
    .await?;
    Ok(())
}

#[db_testkit::test]
async fn an_upsert_into_another_row_is_named_and_binding_to_its_conflict_avoids_it(db: TestDb) {
    let pool = with(&db, CUSTOMERS).await;
    let (by_id, by_email, keys) = (Columns::default(), Columns::default(), keyring());
    let iban = by_id.declare::<String>("customers", "iban").key("id", KeyType::BigInt).text();
    by_id.unlock(keys.clone()).expect("no keys yet");
    upsert(&pool, &iban, 1, "ada@example.org").await.expect("inserted");
    upsert(&pool, &iban, 2, "ada@example.org").await.expect("updated");

    let (id, sealed): Row =
        sqlx::query_as("select id, iban from customers").fetch_one(&pool).await.expect("one row");
    let error = iban.unseal(id, &sealed).expect_err("sealed for row 2");

    assert!(matches!(error, EncryptionError::NotAuthentic { .. }), "{error}");
    assert!(error.to_string().ends_with(
        "sealed for another row or column. If an `on conflict do update` wrote it, seal values for the columns of its `on conflict`"
    ), "{error}");

    sqlx::raw_sql("alter table customers alter email set not null")
        .execute(&db.pool())
        .await
        .expect("altered");
    let iban = by_email.declare::<String>("customers", "iban").key("email", KeyType::Text).text();
    by_email.unlock(keys).expect("no keys yet");
    by_email.check(&pool).await.expect("it fits");
    sqlx::query(
        "insert into customers (id, email, iban) values (3, $1, $2)
         on conflict (email) do update set iban = excluded.iban",
    )
    .bind("ada@example.org")
    .bind(iban.seal("ada@example.org", &"DE3".to_owned()).expect("sealed"))
    .execute(&pool)
    .await
    .expect("updated");
    let sealed: Sealed<String> =
        sqlx::query_scalar("select iban from customers").fetch_one(&pool).await.expect("one row");
    assert_eq!(iban.unseal("ada@example.org", &sealed).expect("its row"), "DE3");
}

#[db_testkit::test]
async fn a_row_is_found_by_its_blind_index_also_under_a_retired_key(db: TestDb) {
    let pool = with(&db, CUSTOMERS).await;
    let (old, new) = (Key::generate().expect("a key"), Key::generate().expect("a key"));
    let under = |keyring: Keyring| {
        let columns = Columns::default();
        let index = columns
            .index("customers", "email")
            .stored_in("customers", "email_index")
            .normalized(Normalization::Caseless)
            .build();
        columns.unlock(Arc::new(keyring)).expect("no keys yet");
        index
    };
    let before = under(Keyring::new(&old));
    let after = under(Keyring::new(&new).with_retired(&old).expect("another id"));
    for (id, index) in [(1, before.of("Ada@Example.org")), (2, after.of("grace@example.org"))] {
        sqlx::query("insert into customers (id, email_index) values ($1, $2)")
            .bind(id)
            .bind(index.expect("a key"))
            .execute(&pool)
            .await
            .expect("stored");
    }
    let find = async |email: &str| -> Vec<i64> {
        sqlx::query_scalar("select id from customers where email_index = any((select $1::bytea[])::bytea[])")
            .bind(after.any(email).expect("keys"))
            .fetch_all(&pool)
            .await
            .expect("rows")
    };

    assert_eq!(find("ada@example.ORG").await, [1]);
    assert_eq!(find("GRACE@example.org").await, [2]);
    assert!(find("alan@example.org").await.is_empty());
}

#[derive(Sealed)]
#[sealed(key = "tenant, nr", plain = "Order", derive(Debug, PartialEq))]
struct OrderRow {
    tenant: String,
    nr: i32,
    /// How it is packed.
    note: Sealed<String>,
    hint: Option<Sealed<Vec<u8>>>,
    is_paid: bool,
}

#[db_testkit::test]
async fn a_row_is_unsealed_in_one_call_and_a_value_of_another_row_is_named(db: TestDb) {
    let pool = with(
        &db,
        "create table orders (tenant text, nr integer, note bytea, hint bytea, is_paid bool, primary key (tenant, nr))",
    )
    .await;
    let columns = Columns::default();
    let orders = OrderRowColumns {
        note: columns
            .declare("orders", "note")
            .key("tenant", KeyType::Text)
            .key("nr", KeyType::Integer)
            .text(),
        hint: columns
            .declare("orders", "hint")
            .key("tenant", KeyType::Text)
            .key("nr", KeyType::Integer)
            .bytes(),
    };
    columns.unlock(keyring()).expect("no keys yet");
    columns.check(&pool).await.expect("all fit");
    for (nr, hint) in [(1, None), (2, Some(orders.hint.seal(("acme", 2), &vec![7]).expect("sealed")))] {
        sqlx::query("insert into orders values ('acme', $1, $2, $3, true)")
            .bind(nr)
            .bind(orders.note.seal(("acme", nr), &format!("fragile {nr}")).expect("sealed"))
            .bind(hint)
            .execute(&pool)
            .await
            .expect("stored");
    }
    let row = async |nr: i32| {
        let (tenant, nr, note, hint, is_paid) = sqlx::query_as("select * from orders where nr = $1")
            .bind(nr)
            .fetch_one(&pool)
            .await
            .expect("a row");
        OrderRow { tenant, nr, note, hint, is_paid }
    };
    let plain = |nr, hint| Order {
        tenant: "acme".to_owned(),
        nr,
        note: format!("fragile {nr}"),
        hint,
        is_paid: true,
    };

    assert_eq!(row(1).await.unseal(&orders).expect("its row"), plain(1, None));
    assert_eq!(row(2).await.unseal(&orders).expect("its row"), plain(2, Some(vec![7])));

    sqlx::raw_sql("update orders set hint = (select hint from orders where nr = 2) where nr = 1")
        .execute(&db.pool())
        .await
        .expect("copied");
    let error = row(1).await.unseal(&orders).expect_err("the hint of another row");
    assert!(
        error.to_string().starts_with(r#"orders.hint of row ["acme","1"]: the value sealed under"#),
        "{error}"
    );
}

#[tokio::test]
async fn before_the_columns_have_keys_nothing_is_sealed_or_unsealed() {
    let columns = Columns::default();
    assert!(!columns.is_locked(), "nothing is declared");
    let iban = columns.declare::<String>("customers", "iban").key("id", KeyType::BigInt).text();

    assert!(columns.is_locked());
    for error in [
        iban.seal(1, &"DE02".to_owned()).map(|_| ()).expect_err("no keys"),
        iban.unseal(1, &Sealed::from_bytes(vec![2, 3])).map(|_| ()).expect_err("no keys"),
    ] {
        assert!(
            error.to_string().starts_with("customers.iban of row 1: the columns have no keys yet"),
            "{error}"
        );
    }

    columns.unlock(keyring()).expect("no keys yet");
    assert!(!columns.is_locked() && iban.seal(1, &"DE02".to_owned()).is_ok());
    assert!(matches!(columns.unlock(keyring()), Err(EncryptionError::Unlocked)));
}

#[tokio::test]
async fn a_value_is_stored_in_the_declared_form_and_another_form_is_an_error() {
    let (columns, keys) = (Columns::default(), keyring());
    let declare = |column| columns.declare::<String>("t", column).key("id", KeyType::BigInt);
    let (text, json, padded) = (declare("a").text(), declare("b").json(), declare("c").padded(32).text());
    let bytes = columns.declare::<Vec<u8>>("t", "d").key("id", KeyType::BigInt).bytes();
    let number = columns.declare::<u8>("t", "a").key("id", KeyType::BigInt).text();
    columns.unlock(keys).expect("no keys yet");
    let value = "300".to_owned();

    let lengths = [
        text.seal(1, &value).expect("sealed").as_bytes().len(),
        json.seal(1, &value).expect("sealed").as_bytes().len(),
        padded.seal(1, &value).expect("sealed").as_bytes().len(),
        bytes.seal(1, &vec![0, 1]).expect("sealed").as_bytes().len(),
    ];
    assert_eq!(lengths, [47 + 3, 47 + 5, 47 + 32, 47 + 2]);
    assert_eq!(padded.unseal(1, &padded.seal(1, &value).expect("sealed")).expect("unsealed"), value);
    assert_eq!(bytes.unseal(1, &bytes.seal(1, &vec![0, 1]).expect("sealed")).expect("unsealed"), [0, 1]);

    let sealed = Sealed::from_bytes(text.seal(1, &value).expect("sealed").as_bytes().to_vec());
    let error = number.unseal(1, &sealed).expect_err("no u8");
    assert_eq!(error.to_string(), "t.a of row 1: the value and its type do not agree");
}

#[test]
fn what_is_declared_is_listed_with_its_names_its_key_and_its_padding() {
    let columns = Columns::default();
    let note = columns
        .declare::<String>("orders", "note")
        .schema("shop")
        .stored_in("Orders", "note_sealed")
        .key("tenant", KeyType::Text)
        .key("nr", KeyType::Integer)
        .padded(32)
        .text();
    let _ = columns.index("orders", "note").schema("shop").stored_in("Orders", "note_index").build();
    columns.unlock(keyring()).expect("no keys yet");

    let declared = columns.declared();
    let sealed = note.seal(("a", 7), &"x".to_owned()).expect("sealed");

    let shown = |declared: &Declared| {
        (declared.to_string(), declared.relation(), declared.stored_column().to_owned(), declared.is_index())
    };
    let relation = r#""shop"."Orders""#.to_owned();
    assert_eq!(
        declared.iter().map(shown).collect::<Vec<_>>(),
        [
            ("orders.note".to_owned(), relation.clone(), "note_sealed".to_owned(), false),
            ("index of orders.note".to_owned(), relation, "note_index".to_owned(), true),
        ]
    );
    let key = declared[0].key_columns().iter().map(|(name, kind)| format!("{name} {kind}"));
    assert_eq!(key.collect::<Vec<_>>(), ["tenant text", "nr integer"]);
    let place = declared[0].place(vec!["a".to_owned(), "7".to_owned()]).expect("two columns");
    assert_eq!(place, Context::new("orders", "note", r#"["a","7"]"#).padded(32));
    assert_eq!(sealed.as_bytes().len(), 47 + 32);
    let error = declared[0].place(vec!["a".to_owned()]).expect_err("one column");
    assert!(matches!(error, EncryptionError::RowKey { given: 1, declared: 2, .. }), "{error}");
}

#[db_testkit::test]
async fn the_server_reads_headers_as_unsealing_does(db: TestDb) {
    let sealed = keyring().seal(b"plan", &Context::new("t", "c", 1)).expect("sealed");
    let mut all: Vec<Vec<u8>> = (0..sealed.len()).map(|length| sealed[..=length].to_vec()).collect();
    for (first, length) in [(&[1, 1][..], 34), (&[1, 2], 34), (&[2, 3, 1], 47)] {
        for length in [1, 2, 3, 6, 9, length - 1, length, length + 1] {
            all.push(first.iter().copied().chain(3..).take(length).collect());
        }
    }
    for first in 0..=255 {
        all.extend([vec![first], vec![first, 3], vec![2, first, 0, 0], vec![2, 3, first, 0], vec![1, first]]);
    }
    all.push(Vec::new());
    let other = keyring();
    let expected = all.iter().map(|bytes| match other.unseal(bytes, &Context::new("t", "c", 1)) {
        Err(EncryptionError::UnknownKey { key_id, .. }) => key_id.to_string(),
        Err(EncryptionError::Malformed { .. }) => "cut".to_owned(),
        Err(EncryptionError::Newer { .. }) => "newer".to_owned(),
        Err(EncryptionError::NotSealed { .. }) => "plain".to_owned(),
        other => panic!("{other:?}"),
    });
    let expected: Vec<_> = expected.collect();

    let header = Declared::new("t", "c").header_sql();
    let read: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
        "select {header} from unnest($1::bytea[]) with ordinality as t(c, nth) order by nth"
    )))
    .bind(&all)
    .fetch_all(&db.pool())
    .await
    .expect("read");

    let differ = all.iter().zip(&read).zip(&expected).filter(|((_, read), expected)| read != expected);
    assert_eq!(differ.collect::<Vec<_>>(), []);
    let null: Option<String> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select {header} from (select null::bytea) as t(c)")))
            .fetch_one(&db.pool())
            .await
            .expect("read");
    assert_eq!(null, None);
}
