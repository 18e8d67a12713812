//! A cluster without a mesh: what the lab promises to everything that is built on it. Needs root.

use std::time::{Duration, Instant};

use lab::{Lab, LabConfig, PodSpec, ServiceSpec};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn four_pods_on_two_nodes() {
    let before = Instant::now();
    let lab = Lab::start(LabConfig::default()).expect("a lab");
    eprintln!("lab up after {:?}", before.elapsed());
    let a = lab.node(0).add_pod(PodSpec::new("shop", "a")).expect("a pod");
    let b = lab.node(0).add_pod(PodSpec::new("shop", "b").label("app", "web")).expect("a pod");
    let c = lab.node(1).add_pod(PodSpec::new("shop", "c").label("app", "web")).expect("a pod");
    let d = lab.node(1).add_pod(PodSpec::new("shop", "d")).expect("a pod");
    eprintln!("pods up after {:?}", before.elapsed());
    lab.add_service(ServiceSpec::new("shop", "web").selector("app", "web").port("http", 80, 8080))
        .expect("a service");
    eprintln!("service up after {:?}", before.elapsed());
    for pod in [&b, &c] {
        let server = ["python3", "-u", "-m", "http.server", "8080", "--bind", "::"];
        let server = pod.spawn(server).expect("a server");
        server.wait_for_line("Serving HTTP", SOON).expect("a server that serves");
    }
    let secret = lab.wire().watch("canary-in-the-path");
    for client in [&a, &d] {
        for target in ["web".to_owned(), b.ip().to_string(), c.ip().to_string(), format!("[{}]", c.ip6())] {
            let url = if target == "web" { "http://web".to_owned() } else { format!("http://{target}:8080") };
            let output = client
                .run([
                    "curl",
                    "-sS",
                    "-m",
                    "5",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code} %{remote_ip}",
                    &format!("{url}/canary-in-the-path"),
                ])
                .expect("curl");
            eprintln!("{} -> {url}: {output:?}", client.name());
            assert_eq!(output.stdout.split(' ').next(), Some("404"), "{output:?}");
        }
    }
    eprintln!("{:?}", secret.sightings().expect("complete").first());
    eprintln!("{:?}", lab.wire().stats().expect("complete"));
    let before = Instant::now();
    lab.remove().expect("nothing left");
    eprintln!("removed in {:?}", before.elapsed());
}
