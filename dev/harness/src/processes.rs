//! Other processes: this test program once more, in which one test does what it is told, order by order.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

/// Where the database is, for a process that is told what to do.
const ADDRESS: &str = "DB_HARNESS_ADDRESS";

/// How long an answer may take: longer than whatever such a process waits for, so that it can say what it has seen.
const LONGEST: Duration = Duration::from_secs(100);

/// Before each answer and each note: the test harness writes to the same pipe.
const ANSWER: &str = "ANSWER\t";
const NOTE: &str = "NOTE\t";

/// A process. It ends when nobody can give orders any more, and is killed when this is dropped.
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
    /// Starts `test`, which begins with [`told`].
    ///
    /// # Panics
    ///
    /// When the operating system refuses a process, a pipe or a thread.
    #[must_use]
    pub fn start(test: &str, address: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program's path"));
        command.args([test, "--exact", "--nocapture"]).env(ADDRESS, address);
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

    /// Gives an order.
    ///
    /// # Panics
    ///
    /// When the process has ended.
    pub fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("it listens");
        order.clone_into(&mut self.last);
    }

    /// Waits for the answer to an order.
    ///
    /// # Panics
    ///
    /// When there is none within 100 seconds, or the process has ended.
    pub async fn hear(&mut self) -> String {
        let answer = timeout(LONGEST, self.answers.recv()).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer in time to `{}`", self.last));
        answer.unwrap_or_else(|| panic!("the process has ended at `{}`", self.last))
    }

    /// Gives an order, and waits for the answer.
    ///
    /// # Panics
    ///
    /// As [`tell`](Self::tell) and [`hear`](Self::hear) do.
    pub async fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.hear().await
    }

    /// What it has noted since this was last asked.
    ///
    /// # Panics
    ///
    /// When the thread that reads has panicked.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().expect("no panic"))
    }

    /// Kills it with `SIGKILL`; returns what it had noted until then.
    #[expect(clippy::must_use_candidate, reason = "not every process notes something")]
    pub fn kill(mut self) -> Vec<String> {
        self.end();
        self.notes()
    }

    fn end(&mut self) {
        // Already gone is what it may be.
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

/// In such a process: the address and the orders, which end with the process that gives them. In a normal run: nothing.
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

/// Notes something for later. It is known to the other process whatever happens to this one afterwards.
pub fn note(text: &str) {
    say(NOTE, text);
}

fn say(what: &str, text: &str) {
    let mut stdout = std::io::stdout().lock();
    // In one piece. If the parent has gone, the orders end, too.
    stdout.write_all(format!("\n{what}{text}\n").as_bytes()).ok();
    stdout.flush().ok();
}

/// How many bytes of memory this process has.
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
