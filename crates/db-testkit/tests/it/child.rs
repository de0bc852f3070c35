//! Another test process: this test program again, with orders in its environment.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use db_testkit::TestDb;

const ORDER: &str = "DB_TESTKIT_TEST_HOLD";

/// In a child: makes a database, prints its name and the server's folder, and keeps it until its input ends. In a normal run:
/// nothing.
#[test]
fn holds_a_database_when_told_to() {
    if std::env::var_os(ORDER).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let db = TestDb::create("tests/migrations").await.unwrap();
        let data = db.server().map(|server| server.data_dir().display().to_string()).unwrap_or_default();
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "\nHOLDS\t{}\t{data}", db.name()).unwrap();
        stdout.flush().unwrap();
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        drop(db);
    });
}

pub(crate) struct Holder {
    child: Child,
    stdin: Option<ChildStdin>,
    /// Kept open, so that the child can write its last output.
    stdout: BufReader<ChildStdout>,
    pub(crate) database: String,
    pub(crate) data: String,
}

impl Holder {
    /// Blocks until it has its database.
    pub(crate) fn start(change: impl FnOnce(&mut Command)) -> Holder {
        let mut command = Command::new(std::env::current_exe().unwrap());
        change(&mut command);
        command.args(["child::holds_a_database_when_told_to", "--exact", "--nocapture"]).env(ORDER, "yes");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut holder = Holder { child, stdin, stdout, database: String::new(), data: String::new() };
        holder.listen();
        holder
    }

    fn listen(&mut self) {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            let length = self.stdout.read_line(&mut line).unwrap();
            assert!(length > 0, "the child has no database: {seen}");
            if let Some(rest) = line.trim_end_matches('\n').strip_prefix("HOLDS\t") {
                let (database, data) = rest.split_once('\t').unwrap();
                (self.database, self.data) = (database.to_owned(), data.to_owned());
                return;
            }
            seen.push_str(&line);
        }
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn end(mut self) {
        self.stdin = None;
        self.child.wait().unwrap();
    }
}
