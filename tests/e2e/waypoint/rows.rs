//! Row by row what Gateway API's conformance tests of meshes ask for (and those of gateways that mean the same here), with what
//! those don't look at: the path, the query and the host that the backend saw, and where a redirect leads.
//!
//! Each row has a Service of its own as its parent, so that none can help or hurt another, and all are in force at once.

mod exact;
mod filters;
mod grpc;
mod matches;
mod mirrors;
mod trouble;

use lab::{Pod, Program, ServiceSpec};
use serde_json::Value;

use super::Guarded;
use crate::mesh::{SOON, curl};

/// A row: its name, which is its Service's too, its route's rules, and what becomes of requests.
struct Row {
    name: &'static str,
    rules: &'static str,
    checks: &'static [Check<'static>],
}

/// A request, as curl's arguments with the path last, and what has to be true of its answer: `status=200`, `server=one` (who
/// answered), `path=/x?y`, `host=h`, `method=m` and `bytes=n` (that it saw), `asked=n` (which request of its path it was),
/// `location=l` and `grpc-status=n` (of the answer), `>name=value` (a field that it saw), `<name=value` (a field of the answer). Without a value, there
/// is none. What is left out is as if there were no route: 200, the path and the host as they were asked for.
struct Check<'a>(&'a [&'a str], &'a [&'a str]);

/// An answer in the words of [`Check`].
struct Seen {
    head: String,
    body: Value,
}

impl Seen {
    fn of(client: &Pod, host: &str, ask: &[&str]) -> Self {
        let (path, args) = ask.split_last().expect("a path");
        let url = if path.starts_with("http") { (*path).to_owned() } else { format!("http://{host}{path}") };
        let all: Vec<&str> = ["-i", "--path-as-is"].into_iter().chain(args.iter().copied()).collect();
        let output = curl(client, &[all.as_slice(), &[url.as_str()]].concat());
        assert!(output.success(), "{ask:?}: {output:?}");
        let (head, body) = output.stdout.split_once("\r\n\r\n").unwrap_or((&output.stdout, ""));
        Self { head: head.to_owned(), body: serde_json::from_str(body).unwrap_or_default() }
    }

    fn value(&self, key: &str) -> String {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match (key, key.split_at(1)) {
            ("status", _) => self.head.split(' ').nth(1).unwrap_or_default().to_owned(),
            ("server", _) => text(&self.body["name"]),
            ("path", _) => text(&self.body["path"]),
            ("method", _) => text(&self.body["method"]),
            ("asked" | "bytes", _) => self.body[key].to_string(),
            ("host", _) => text(&self.body["headers"]["host"]),
            ("location" | "grpc-status", _) => self.field(key),
            (_, (">", name)) => text(&self.body["headers"][name]),
            (_, ("<", name)) => self.field(name),
            _ => panic!("a fact of unknown kind {key:?}"),
        }
    }

    /// All fields of that name, as one.
    fn field(&self, name: &str) -> String {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let values =
            lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
        values.collect::<Vec<_>>().join(",")
    }

    /// What is not as it should be.
    fn complaint(&self, host: &str, Check(ask, facts): &Check<'_>) -> Result<(), String> {
        let mut expected: Vec<(&str, &str)> =
            facts.iter().map(|fact| fact.split_once('=').expect("key=value")).collect();
        let mut default = |key, value| {
            if expected.iter().all(|(known, _)| *known != key) {
                expected.push((key, value));
            }
        };
        default("status", "200");
        if !self.body["path"].is_null() {
            default("path", ask.last().expect("a path"));
            default("host", host);
        }
        let wrong = expected.iter().filter(|(key, value)| self.value(key) != *value);
        let wrong: Vec<_> =
            wrong.map(|(key, value)| format!("{key} is {:?}, not {value:?}", self.value(key))).collect();
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(format!("{ask:?}: {}; {} {}", wrong.join(", "), self.head, self.body))
        }
    }
}

/// What each route has a rule of its own for, so that it is known when it is in force.
const IN_FORCE: &str = "/is/this/in/force";

fn route(name: &str, rules: &str) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: {name}}}]
  rules:
{rules}  - matches: [{{path: {{type: Exact, value: {IN_FORCE}}}}}]
    filters: [{{type: RequestRedirect, requestRedirect: {{hostname: in.force, statusCode: 308}}}}]
---
"
    )
}

/// The status of each of so many requests, and who answered it, a line for each.
fn repeated(client: &Pod, url: &str, requests: usize) -> String {
    let words = ["-sS", "-m", "30", "-w", "%{http_code} %header{x-lab-name}\n"];
    // Each URL needs an -o of its own.
    let urls = (0..requests).flat_map(|_| ["-o", "/dev/null", url]);
    let curl = Program::new("curl").args(words.into_iter().chain(urls));
    let output = client.run_within(curl, SOON).expect("curl ends");
    assert!(output.success(), "{url}: {output:?}");
    output.stdout
}

/// A Service of both servers, on two ports.
fn service(name: &str) -> ServiceSpec {
    let spec = ServiceSpec::new("shop", name).selector("app", "server");
    let spec = spec.port("http", 80, 8080).port("http-other", 81, 8080);
    spec.label("istio.io/use-waypoint", "waypoint")
}

#[test]
fn every_row_holds_and_the_backend_saw_what_it_should() {
    let guarded = Guarded::start();
    let Guarded { mesh, client, .. } = &guarded;
    for name in ["one", "two"] {
        let spec = ServiceSpec::new("shop", name).selector("version", name).port("http", 80, 8080);
        mesh.lab.add_service(spec).expect("a service");
    }
    let rows = || [matches::ROWS, filters::ROWS, trouble::ROWS].into_iter().flatten();
    for row in rows() {
        mesh.lab.add_service(service(row.name)).expect("a service");
    }
    mesh.lab.apply_yaml("namespaces.yaml", trouble::NAMESPACES).expect("namespaces");
    let more = exact::prepare(&guarded) + &mirrors::prepare(&guarded) + &grpc::prepare(&guarded);
    let routes = rows().filter(|row| !row.rules.is_empty()).map(|row| route(row.name, row.rules));
    mesh.lab.apply_yaml("rows.yaml", &(routes.collect::<String>() + &more)).expect("routes");
    for row in rows() {
        let host = format!("{}.shop", row.name);
        let check = |check: &Check<'_>| Seen::of(client, &host, check.0).complaint(&host, check);
        if !row.rules.is_empty() {
            let told = || check(&Check(&[IN_FORCE], &["status=308"]));
            lab::wait_until(row.name, SOON, told).expect("a route in force");
        }
        for one in row.checks {
            check(one).unwrap_or_else(|wrong| panic!("{}: {wrong}", row.name));
        }
    }
    mirrors::hold(&guarded);
    grpc::hold(&guarded);
    exact::weights(&guarded);
    exact::across(&guarded);
    exact::addresses(&guarded);
    exact::ports(&guarded);
    exact::consumers(&guarded);
    exact::shares_of_what_leads_nowhere(&guarded);
}
