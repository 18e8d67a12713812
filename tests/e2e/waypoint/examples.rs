//! The examples of docs/releases.md, applied from its very text.

use lab::{Lab, Pod, PodSpec, Program, ServiceSpec};

use super::Guarded;
use crate::mesh::{SOON, curl, get};

const PAGE: &str = include_str!("../../../docs/releases.md");

const URL: &str = "http://reviews.shop/";

/// The examples below a heading.
fn examples(heading: &str) -> Vec<&'static str> {
    let (_, below) = PAGE.split_once(&format!("\n## {heading}\n")).expect("a heading of the page");
    let section = below.split("\n## ").next().unwrap_or(below);
    let blocks = section.split("```yaml\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap_or(block)).collect()
}

fn example(heading: &str) -> &'static str {
    let [one] = examples(heading)[..] else { panic!("not one example below {heading}") };
    one
}

/// Of so many requests with these headers, how many the new version answers, and how many nobody does.
fn counted(client: &Pod, headers: &[&str], requests: usize) -> (usize, usize) {
    let headers = headers.iter().flat_map(|header| ["-H", *header]);
    let urls = (0..requests).flat_map(|_| ["-o", "/dev/null", URL]);
    let words = ["-sS", "-m", "30", "-w", "%{http_code} %header{x-lab-name}\n"];
    let args = words.into_iter().chain(headers).chain(urls).collect::<Vec<_>>();
    let output = client.run_within(Program::new("curl").args(args), SOON).expect("curl ends");
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines.len(), requests, "{output:?}");
    let number = |wanted: &str| lines.iter().filter(|line| **line == wanted).count();
    let (old, new, failed) = (number("200 one"), number("200 two"), number("503 "));
    assert_eq!(old + new + failed, requests, "{lines:?}");
    (new, failed)
}

/// Applies an example and waits until a request with this header is answered by that version.
fn follow(lab: &Lab, yaml: &str, client: &Pod, header: &str, version: &str) {
    lab.apply_yaml("example.yaml", yaml).expect("a manifest");
    lab::wait_until("the example is in force", SOON, || {
        // Both versions are behind the service without a route.
        let mut names = (0..8).map(|_| curl(client, &["-H", header, URL]).stdout);
        let wanted = format!("\"name\":\"{version}\"");
        names.try_for_each(|answer| if answer.contains(&wanted) { Ok(()) } else { Err(answer) })
    })
    .expect("an example in force");
}

#[test]
fn the_examples_of_releases_do_what_they_say() {
    let guarded = Guarded::start();
    let lab = &guarded.mesh.lab;
    let service = |name: &str, (key, value): (&str, &str)| {
        ServiceSpec::new("shop", name).selector(key, value).port("http", 80, 8080)
    };
    lab.add_service(service("reviews-v1", ("version", "one"))).expect("a service");
    lab.add_service(service("reviews-v2", ("version", "two"))).expect("a service");
    let reviews = service("reviews", ("app", "server")).label("istio.io/use-waypoint", "waypoint");
    lab.add_service(reviews).expect("a service");
    let pod = |namespace: &str, account: &str| {
        let spec = PodSpec::new(namespace, account).service_account(account);
        guarded.mesh.node(0).add_pod(spec).expect("a pod")
    };
    let (web, partner) = (pod("shop", "web"), pod("partners", "partner"));
    guarded.mesh.enrol("shop", &[&web]);
    guarded.mesh.enrol("partners", &[&partner]);
    get(&web, URL);

    let [blue, green] = examples("Blue-green")[..] else { panic!("two examples") };
    for (yaml, version, new) in [(blue, "one", 0), (green, "two", 20), (blue, "one", 0)] {
        follow(lab, yaml, &web, "x: y", version);
        assert_eq!(counted(&web, &[], 20), (new, 0));
    }

    follow(lab, example("A/B by header"), &web, "x-group: beta", "two");
    assert_eq!(counted(&web, &["x-group: beta"], 20), (20, 0));
    assert_eq!([counted(&web, &[], 20), counted(&web, &["x-group: alpha"], 20)], [(0, 0), (0, 0)]);

    follow(lab, example("A/B by cookie"), &web, "cookie: group=beta", "two");
    assert_eq!(counted(&web, &["cookie: theme=dark; group=beta; lang=en"], 20), (20, 0));
    assert_eq!(
        [counted(&web, &["cookie: group=beta2"], 20), counted(&web, &["cookie: mygroup=beta"], 20)],
        [(0, 0); 2]
    );

    let both = format!("{blue}---\n{}", example("A/B by identity"));
    follow(lab, &both, &partner, "x: y", "two");
    assert_eq!([counted(&partner, &[], 20), counted(&web, &[], 20)], [(20, 0), (0, 0)]);

    // A quarter of 400, and a tenth of them, with five standard deviations to either side.
    let both = format!("{blue}---\n{}", example("What if it fails?"));
    follow(lab, &both, &web, "x: y", "one");
    let of_jane = || match counted(&web, &["x-user: jane"], 20) {
        (_, 0) => Err("nothing failed"),
        _ => Ok(()),
    };
    lab::wait_until("the experiment has begun", SOON, of_jane).expect("a policy in force");
    let (_, failed) = counted(&web, &["x-user: jane"], 400);
    assert!((57..=143).contains(&failed), "{failed} of 400 by 25 %");
    assert_eq!([counted(&web, &[], 40), counted(&guarded.client, &["x-user: jane"], 40)], [(0, 0); 2]);

    lab.apply_yaml("example.yaml", example("A canary, by weight")).expect("a manifest");
    let seldom = || match counted(&web, &[], 60) {
        (1..=20, 0) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    lab::wait_until("the canary", SOON, seldom).expect("a route in force");
    let (new, failed) = counted(&web, &[], 400);
    assert!((10..=70).contains(&new) && failed == 0, "{new} of 400 by 10 %, {failed} failed");
}
