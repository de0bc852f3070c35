//! A second process of this test program, in which one test follows orders.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

/// The environment variable with the database's address, which also tells a process to take orders.
const ADDRESS: &str = "DB_HARNESS_ADDRESS";

/// Limit for an answer: longer than every wait of such a process, so that it can report what it saw.
const LONGEST: Duration = Duration::from_secs(100);

/// Written before each answer, since cargo's test harness prints to the same pipe.
const ANSWER: &str = "ANSWER\t";
const NOTE: &str = "NOTE\t";

/// A process that takes orders. It ends when this value does, and is killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    orders: ChildStdin,
    last: String,
    answers: UnboundedReceiver<String>,
    notes: Arc<Mutex<Vec<String>>>,
    reading: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `test`, which must begin with [`told`].
    ///
    /// # Panics
    ///
    /// If the operating system refuses a process, a pipe or a thread.
    #[must_use]
    pub fn start(test: &str, address: &str) -> Self {
        Self::start_with(test, address, &[])
    }

    /// The same, with these variables in its environment, too.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(test: &str, address: &str, variables: &[(&str, String)]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program's path"));
        command.args([test, "--exact", "--nocapture"]).env(ADDRESS, address);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let orders = child.stdin.take().expect("stdin is piped");
        let said = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (sender, answers) = unbounded_channel();
        let notes = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&notes);
        let reading = thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                if let Some((_, note)) = line.split_once(NOTE) {
                    heard.lock().expect("no panic").push(note.to_owned());
                } else if let Some((_, answer)) = line.split_once(ANSWER)
                    && sender.send(answer.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self { child, orders, last: String::new(), answers, notes, reading: Some(reading) }
    }

    /// Sends an order.
    ///
    /// # Panics
    ///
    /// If the process has ended.
    pub fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("it listens");
        order.clone_into(&mut self.last);
    }

    /// Waits for the answer to an order.
    ///
    /// # Panics
    ///
    /// After 100 s, or if the process has ended.
    pub async fn hear(&mut self) -> String {
        let answer = timeout(LONGEST, self.answers.recv()).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer in time to `{}`", self.last));
        answer.unwrap_or_else(|| panic!("the process has ended at `{}`", self.last))
    }

    /// Sends an order, and waits for the answer.
    ///
    /// # Panics
    ///
    /// As [`tell`](Self::tell) and [`hear`](Self::hear).
    pub async fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.hear().await
    }

    /// The notes since the last call.
    ///
    /// # Panics
    ///
    /// If the thread that reads has panicked.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().expect("no panic"))
    }

    /// Kills the process with `SIGKILL`, and returns its remaining notes.
    #[expect(clippy::must_use_candidate, reason = "not every process notes something")]
    pub fn kill(mut self) -> Vec<String> {
        self.end();
        self.notes()
    }

    fn end(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
        if let Some(reading) = self.reading.take() {
            reading.join().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// In such a process: the database's address and the orders, which end with the parent. In a normal run: `None`.
#[must_use]
pub fn told() -> Option<(String, UnboundedReceiver<String>)> {
    let address = std::env::var(ADDRESS).ok()?;
    let (sender, orders) = unbounded_channel();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Some((address, orders))
}

/// Answers an order.
pub fn answer(text: &str) {
    say(ANSWER, text);
}

/// Writes a note, which the parent has even if this process dies afterwards.
pub fn note(text: &str) {
    say(NOTE, text);
}

fn say(what: &str, text: &str) {
    let mut stdout = std::io::stdout().lock();
    // In one write. If the parent has gone, the orders end, too.
    stdout.write_all(format!("\n{what}{text}\n").as_bytes()).ok();
    stdout.flush().ok();
}

/// The resident memory of this process, in bytes.
///
/// # Panics
///
/// On systems other than Linux.
#[must_use]
pub fn resident() -> usize {
    let text = fs::read_to_string("/proc/self/statm").expect("the process's memory");
    let pages: usize =
        text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages that are resident");
    pages * 4096
}
