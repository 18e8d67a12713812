//! Customers of the shop: programs in a pod that send requests, and what they say about them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use lab::{Process, Signal};
use serde::Deserialize;
use serde_json::Value;

use super::error::DemoError;
use crate::interrupt::Interrupt;

/// How long requests that go well may take to be made. The slowest machine makes dozens per second.
const REQUESTS_WITHIN: Duration = Duration::from_secs(30);

/// What customers do.
#[derive(Clone, Debug)]
pub(crate) struct Browse {
    to: String,
    args: Vec<String>,
}

impl Browse {
    /// One customer who sends `card` in the body of every request to `to`, each on a connection of its own.
    pub(crate) fn new(to: impl Into<String>, card: &str) -> Self {
        Self { to: to.into(), args: vec!["--body".into(), format!("card={card}")] }
    }

    /// That many customers at once, each with a pause between its requests.
    pub(crate) fn crowd(self, clients: u32, interval: Duration) -> Self {
        self.arg("--clients", clients).arg("--interval-ms", interval.as_millis())
    }

    /// Ends by itself after so many requests.
    pub(crate) fn requests(self, number: u64) -> Self {
        self.arg("--requests", number)
    }

    /// All requests of a customer on one connection.
    pub(crate) fn keep(mut self) -> Self {
        self.args.push("--keep".into());
        self
    }

    /// Every request carries this, written `name: value`.
    pub(crate) fn header(self, header: &str) -> Self {
        self.arg("--header", header)
    }

    /// What their program is told.
    pub(crate) fn args(self) -> Vec<String> {
        [vec!["browse".to_owned(), "--to".to_owned(), self.to], self.args].concat()
    }

    fn arg(mut self, name: &str, value: impl ToString) -> Self {
        self.args.extend([name.to_owned(), value.to_string()]);
        self
    }
}

/// Customers at work. Ends with [`Traffic::finish`], or with the shop.
#[derive(Debug)]
pub(crate) struct Traffic {
    process: Process,
    interrupt: Interrupt,
}

/// A line that customers print while they work.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Line {
    at_us: u64,
    succeeded: u64,
    failed: u64,
    #[serde(default)]
    answered_by: BTreeMap<String, u64>,
    /// The mark of the route that the newest answer came by.
    #[serde(default)]
    edition: Option<String>,
    /// Present in a line about a failure.
    pub(crate) error: Option<String>,
    took_us: Option<u64>,
}

impl Line {
    fn at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(self.at_us)
    }

    /// How long the request took that failed.
    pub(crate) fn took(&self) -> Duration {
        Duration::from_micros(self.took_us.unwrap_or_default())
    }
}

/// What customers say at the end.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Summary {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) connections: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) answered_by: BTreeMap<String, u64>,
    /// Who answered the requests that came by a marked route, by its mark.
    editions: BTreeMap<String, BTreeMap<String, u64>>,
    /// How many requests a service says that it failed.
    pub(crate) broken: BTreeMap<String, u64>,
    slowest_us: u64,
    /// The first thousands of failures, one by one.
    #[serde(skip)]
    pub(crate) failures: Vec<Line>,
}

impl Summary {
    /// How long the slowest request took that succeeded.
    pub(crate) fn slowest(&self) -> Duration {
        Duration::from_micros(self.slowest_us)
    }

    /// How many requests came by the route of that mark, and how many of them `name` answered.
    pub(crate) fn by_edition(&self, edition: &str, name: &str) -> (u64, u64) {
        let answered = self.editions.get(edition);
        let all = answered.map_or(0, |answered| answered.values().sum());
        (all, answered.and_then(|answered| answered.get(name)).copied().unwrap_or_default())
    }

    /// What went wrong, for a claim that it did not.
    pub(crate) fn complaint(&self) -> String {
        let errors = self.errors.iter().map(|(error, number)| format!("; {number} x {error}"));
        errors.collect()
    }
}

impl Traffic {
    /// Customers that are at work.
    pub(crate) fn new(process: Process, interrupt: &Interrupt) -> Self {
        Self { process, interrupt: interrupt.clone() }
    }

    /// Waits until so many more requests than now were made.
    pub(crate) fn more(&self, number: u64) -> Result<(), DemoError> {
        let made = |line: &Line| line.succeeded + line.failed;
        let target = made(&self.last()) + number;
        self.until(&format!("{number} more requests"), |lines| {
            lines.last().is_some_and(|line| made(line) >= target)
        })
    }

    /// Waits until somebody answered, and returns when, according to the customers' clock.
    pub(crate) fn until_answered_by(&self, name: &str) -> Result<SystemTime, DemoError> {
        let by = |line: &Line| line.answered_by.contains_key(name);
        self.until(&format!("an answer of {name}"), |lines| lines.iter().any(by))?;
        Ok(self.lines().iter().find(|line| by(line)).map_or(SystemTime::now(), Line::at))
    }

    /// Waits for an answer that came by the route of that mark, and returns when the first one came.
    pub(crate) fn until_edition(&self, edition: &str) -> Result<SystemTime, DemoError> {
        let of = |line: &Line| line.edition.as_deref() == Some(edition);
        self.until(&format!("an answer by {edition}"), |lines| lines.iter().any(of))?;
        Ok(self.lines().iter().find(|line| of(line)).map_or(SystemTime::now(), Line::at))
    }

    /// Waits until somebody has answered nothing during so many requests.
    pub(crate) fn until_unused(&self, name: &str, during: u64) -> Result<(), DemoError> {
        let answered = |line: &Line| line.answered_by.get(name).copied().unwrap_or_default();
        self.until(&format!("{during} requests without {name}"), |lines| {
            let Some(last) = lines.last() else { return false };
            let since = lines.iter().find(|line| answered(line) == answered(last));
            since.is_some_and(|since| last.succeeded - since.succeeded >= during)
        })
    }

    /// Waits for a failure (or a success) after that time, and returns when it came.
    pub(crate) fn until_outcome(&self, failure: bool, after: SystemTime) -> Result<SystemTime, DemoError> {
        let what = if failure { "a refused request" } else { "a request that succeeds" };
        let wanted = |line: &&Line| line.at() > after && line.error.is_some() == failure;
        self.until(what, |lines| lines.iter().any(|line| wanted(&line)))?;
        Ok(self.lines().iter().find(wanted).map_or(SystemTime::now(), Line::at))
    }

    /// Waits until all requests are made.
    pub(crate) fn wait(self) -> Result<Summary, DemoError> {
        self.interrupt.wait_for(REQUESTS_WITHIN, || (!self.process.is_running()).then_some(()))?;
        self.finish()
    }

    /// Sends the customers home and asks what happened.
    pub(crate) fn finish(self) -> Result<Summary, DemoError> {
        self.process.signal(Signal::SIGTERM)?;
        let output = self.process.wait(REQUESTS_WITHIN)?;
        let last = output.stdout.lines().last().unwrap_or_default();
        let report = serde_json::from_str(last).ok().map(|mut line: Value| line["report"].take());
        let summary = report.and_then(|report| serde_json::from_value::<Summary>(report).ok());
        let Some(mut summary) = summary else {
            let said = format!("{last}{}", output.stderr);
            return Err(DemoError::Silent { command: self.process.command().to_owned(), said });
        };
        summary.failures = lines(&output.stdout).into_iter().filter(|line| line.error.is_some()).collect();
        Ok(summary)
    }

    fn until(&self, what: &str, mut condition: impl FnMut(&[Line]) -> bool) -> Result<(), DemoError> {
        let seen = self.interrupt.wait_for(REQUESTS_WITHIN, || condition(&self.lines()).then_some(()))?;
        seen.ok_or_else(|| DemoError::Late {
            what: what.into(),
            within: REQUESTS_WITHIN,
            last: format!("{:?}", self.last()),
        })
    }

    fn last(&self) -> Line {
        self.lines().pop().unwrap_or_default()
    }

    fn lines(&self) -> Vec<Line> {
        lines(&self.process.output().stdout)
    }
}

/// Lines that cannot be read are the beginning of one that is being written, or the report.
fn lines(output: &str) -> Vec<Line> {
    output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_customers_are_understood() {
        let output = "{\"at_us\":1000000,\"succeeded\":1,\"failed\":0,\"answered_by\":{\"cart-1\":1}}\n\
                      {\"at_us\":2000000,\"succeeded\":1,\"failed\":1,\"answered_by\":{},\"error\":\"connect: refused\",\"took_us\":7}\n\
                      {\"report\":{}}\n{\"at_us\":3";
        let lines = lines(output);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].at(), SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        assert_eq!((lines[0].answered_by["cart-1"], lines[0].error.is_some()), (1, false));
        assert_eq!((lines[1].failed, lines[1].took()), (1, Duration::from_micros(7)));
    }
}
