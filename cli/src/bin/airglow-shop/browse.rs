//! A customer: requests one after the other, and an account of each one that failed.
//!
//! Prints lines of JSON. While it works: `at_us` (Unix time), `succeeded`, `failed`, `answered_by`, the newest `edition` and, after
//! a failure, `error` and `took_us`.
//! At the end (SIGTERM, or all requests made): `report`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::client::{self, Kept, Url};

/// Successes between two lines about them. A failure has a line of its own, and so has the first success after it, and the first of
/// an edition.
const LINE_EVERY: u64 = 10;

#[derive(Args)]
pub(crate) struct Browse {
    /// Where requests go.
    #[arg(long)]
    to: Url,
    /// What every request carries in its body.
    #[arg(long, default_value = "")]
    body: String,
    /// `name: value`, which every request carries. May be repeated.
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<client::Header>,
    /// Customers at the same time.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// How long each customer pauses between requests.
    #[arg(long, default_value_t = 0)]
    interval_ms: u64,
    /// The requests after which to stop; until SIGTERM when absent.
    #[arg(long)]
    requests: Option<u64>,
    /// One connection per customer for all requests, instead of one for each.
    #[arg(long)]
    keep: bool,
    /// How long one request may take, connecting included.
    #[arg(long, default_value_t = 10)]
    timeout_s: u64,
}

#[derive(Default)]
struct Account {
    started: u64,
    succeeded: u64,
    failed: u64,
    /// Whether the last request succeeded.
    well: bool,
    connections: u64,
    errors: BTreeMap<String, u64>,
    answered_by: BTreeMap<String, u64>,
    /// Of the requests that came by a marked route: who answered them, by the route's mark.
    editions: BTreeMap<String, BTreeMap<String, u64>>,
    /// The newest mark.
    edition: Option<String>,
    /// How many requests each service says that it failed, as far as its answers tell.
    broken: BTreeMap<String, u64>,
    slowest: Duration,
    total: Duration,
}

pub(crate) async fn browse(args: Browse) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let (args, account) = (Rc::new(args), Rc::new(RefCell::new(Account::default())));
    let local = LocalSet::new();
    let customers: Vec<_> = (0..args.clients)
        .map(|_| local.spawn_local(customer(Rc::clone(&args), Rc::clone(&account))))
        .collect();
    let finished = async {
        for customer in customers {
            drop(customer.await);
        }
    };
    local
        .run_until(async {
            tokio::select! {
                () = finished => {}
                _ = terminate.recv() => {}
            }
        })
        .await;
    println!("{}", json!({ "report": account.borrow().report() }));
    Ok(())
}

async fn customer(args: Rc<Browse>, account: Rc<RefCell<Account>>) {
    let mut kept: Option<Kept> = None;
    loop {
        {
            let mut account = account.borrow_mut();
            if args.requests.is_some_and(|limit| account.started >= limit) {
                return;
            }
            account.started += 1;
            account.connections += u64::from(kept.is_none());
        }
        let began = Instant::now();
        let one = request(&args, &mut kept);
        let outcome = match timeout(Duration::from_secs(args.timeout_s), one).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("no answer within {} s", args.timeout_s)),
        };
        if outcome.is_err() || !args.keep {
            kept = None;
        }
        account.borrow_mut().settle(began.elapsed(), outcome);
        sleep(Duration::from_millis(args.interval_ms)).await;
    }
}

async fn request(args: &Browse, kept: &mut Option<Kept>) -> Result<Value> {
    let connection = match kept {
        Some(connection) => connection,
        None => kept.insert(client::connect(&args.to).await?),
    };
    let answer = client::ask(connection, &args.to, (&args.headers, &args.body), args.keep).await?;
    serde_json::from_slice(&answer).context("the answer is not JSON")
}

impl Account {
    fn settle(&mut self, took: Duration, outcome: Result<Value>) {
        match outcome {
            Ok(answer) => {
                self.succeeded += 1;
                self.slowest = self.slowest.max(took);
                self.total += took;
                self.name_all(&answer);
                let recovered = !std::mem::replace(&mut self.well, true);
                if self.follow(&answer) || recovered || self.succeeded.is_multiple_of(LINE_EVERY) {
                    println!("{}", self.line());
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                self.failed += 1;
                self.well = false;
                let mut line = self.line();
                line["error"] = json!(error);
                line["took_us"] = json!(took.as_micros());
                println!("{line}");
                *self.errors.entry(error).or_default() += 1;
            }
        }
    }

    /// Everybody who took part in an answer.
    fn name_all(&mut self, answer: &Value) {
        if let Some(name) = answer["name"].as_str() {
            *self.answered_by.entry(name.to_owned()).or_default() += 1;
        }
        for call in answer["calls"].as_array().into_iter().flatten() {
            self.name_all(call);
        }
    }

    /// Counts the answer by its edition. Whether it is the first of this one.
    fn follow(&mut self, answer: &Value) -> bool {
        let Some(name) = answer["name"].as_str() else { return false };
        if let Some(broken) = answer["broken"].as_u64().filter(|broken| *broken > 0) {
            self.broken.insert(name.to_owned(), broken);
        }
        let Some(edition) = answer["edition"].as_str() else { return false };
        let is_new = !self.editions.contains_key(edition);
        *self.editions.entry(edition.to_owned()).or_default().entry(name.to_owned()).or_default() += 1;
        self.edition = Some(edition.to_owned());
        is_new
    }

    fn line(&self) -> Value {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        json!({
            "at_us": at.as_micros(), "succeeded": self.succeeded, "failed": self.failed, "answered_by": self.answered_by,
            "edition": self.edition,
        })
    }

    /// Requests under way at the end are neither succeeded nor failed.
    fn report(&self) -> Value {
        let mean = self.total.as_micros() / u128::from(self.succeeded.max(1));
        json!({
            "succeeded": self.succeeded,
            "failed": self.failed,
            "unfinished": self.started - self.succeeded - self.failed,
            "connections": self.connections,
            "errors": self.errors,
            "answered_by": self.answered_by,
            "editions": self.editions,
            "broken": self.broken,
            "mean_us": mean,
            "slowest_us": self.slowest.as_micros(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editions_are_counted_and_the_first_of_each_is_told() {
        let mut account = Account::default();
        let of = |edition: &str, name: &str| json!({"name": name, "edition": edition, "broken": 0});
        assert!(account.follow(&of("a", "x")) && !account.follow(&of("a", "y")));
        assert!(account.follow(&of("b", "x")) && !account.follow(&json!({"name": "x", "broken": 3})));
        let report = account.report();
        assert_eq!(report["editions"], json!({"a": {"x": 1, "y": 1}, "b": {"x": 1}}));
        assert_eq!((&report["broken"], &account.line()["edition"]), (&json!({"x": 3}), &json!("b")));
    }

    #[test]
    fn everybody_who_took_part_is_counted() {
        let mut account = Account { started: 3, ..Account::default() };
        let answer = json!({"name": "frontend", "calls": [{"name": "cart", "calls": [{"name": "pay"}]}]});
        account.settle(Duration::from_millis(2), Ok(answer.clone()));
        account.settle(Duration::from_millis(4), Ok(answer));
        account.settle(Duration::from_millis(9), Err(anyhow::anyhow!("connect: refused")));
        let report = account.report();
        assert_eq!(report["answered_by"], json!({"frontend": 2, "cart": 2, "pay": 2}));
        assert_eq!((&report["succeeded"], &report["failed"]), (&json!(2), &json!(1)));
        assert_eq!((&report["mean_us"], &report["slowest_us"]), (&json!(3000), &json!(4000)));
        assert_eq!(report["errors"], json!({"connect: refused": 1}));
    }
}
