//! Nodes, pods, services and names.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use lab::{DNS_VIP, LabConfig, LabError, PodSpec, Program, ServiceSpec, Slice, Tuning};

use crate::{SOON, client, get, serve, start, with_client};

fn web(name: &str) -> PodSpec {
    PodSpec::new("shop", name).label("app", "web").port("http", 8080)
}

#[test]
fn every_pod_reaches_every_pod_with_its_own_address() {
    let lab = start(LabConfig::default());
    let pods: Vec<_> = (0..4)
        .map(|i| lab.node(i / 2).add_pod(PodSpec::new("shop", format!("p{i}"))).expect("a pod"))
        .collect();
    for pod in &pods {
        serve(pod, &["http", "--name", pod.name()]);
    }
    for from in &pods {
        for to in &pods {
            for (ip, source) in to.ips().iter().zip(from.ips()) {
                let url =
                    if ip.is_ipv4() { format!("http://{ip}:8080/") } else { format!("http://[{ip}]:8080/") };
                let seen = get(from, &url);
                assert_eq!(seen["name"], to.name(), "{url}");
                let client = seen["client"].as_str().expect("an address");
                let client: std::net::SocketAddr = client.parse().expect("an address");
                assert_eq!(client.ip(), *source, "{url}");
            }
        }
    }
}

#[test]
fn a_service_leads_to_ready_pods_only() {
    let (lab, client) = with_client();
    let spec = ServiceSpec::new("shop", "web").selector("app", "web").port("http", 80, "http");
    let service = lab.add_service(spec.port("admin", 81, 8080)).expect("a service");
    let refused = client.run(["curl", "-sS", "-m", "10", "http://web/"]).expect("curl");
    assert_eq!(refused.code(), Some(7), "no endpoint: refused at once, not timed out: {refused:?}");

    let pods: Vec<_> =
        (0..2).map(|node| lab.node(node).add_pod(web(&format!("web-{node}"))).expect("a pod")).collect();
    for pod in &pods {
        serve(pod, &["http", "--name", pod.name()]);
    }
    let answered_by = |url: &str| -> BTreeSet<String> {
        (0..20).map(|_| get(&client, url)["name"].as_str().expect("a name").to_owned()).collect()
    };
    let both = BTreeSet::from(["web-0".to_owned(), "web-1".to_owned()]);
    assert_eq!(answered_by("http://web/"), both);
    assert_eq!(answered_by(&format!("http://{}:81/", service.ips[0])), both);
    assert_eq!(answered_by(&format!("http://[{}]/", service.ips[1])), both);

    pods[0].set_ready(false).expect("a change");
    assert_eq!(answered_by("http://web.shop/"), BTreeSet::from(["web-1".to_owned()]));
    pods[0].set_ready(true).expect("a change");
    pods[1].start_deletion().expect("a change");
    assert_eq!(answered_by("http://web.shop.svc/"), BTreeSet::from(["web-0".to_owned()]));
}

#[test]
fn nodes_and_pods_reach_services_even_their_own() {
    let lab = start(LabConfig::default());
    lab.add_service(ServiceSpec::new("shop", "web").selector("app", "web").port("http", 80, 8080))
        .expect("a service");
    let pod = lab.node(0).add_pod(web("web-0")).expect("a pod");
    serve(&pod, &["http"]);
    assert_eq!(get(&pod, "http://web/")["name"], "http", "through its own service");
    for node in lab.nodes() {
        for vip in ["10.96.1.0", "[fd00:10:96::100]"] {
            let output = node
                .run(Slice::System, ["curl", "-sS", "-m", "10", &format!("http://{vip}/")])
                .expect("curl");
            assert!(output.success(), "{} -> {vip}: {output:?}", node.name());
        }
    }
}

#[test]
fn names_follow_the_cluster() {
    let (lab, asker) = with_client();
    let ask = |name: &str, kind: &str, how: &str| {
        let server = format!("{}:53", DNS_VIP.v4);
        client(&asker, &["dns", "--server", &server, "--name", name, "--kind", kind, "--transport", how])
    };
    lab.add_service(
        ServiceSpec::new("shop", "each").selector("app", "web").port("http", 80, 8080).headless(),
    )
    .expect("a service");
    let first = lab.node(0).add_pod(web("web-0")).expect("a pod");
    let second = lab.node(1).add_pod(web("web-1")).expect("a pod");
    let expected = |v4: bool| -> Vec<String> {
        let of = |pod: &lab::Pod| pod.ips().iter().find(|ip| ip.is_ipv4() == v4).map(IpAddr::to_string);
        [of(&first), of(&second)].into_iter().flatten().collect()
    };
    for how in ["connected", "unconnected", "tcp"] {
        let name = "each.shop.svc.cluster.local.";
        assert_eq!(ask(name, "a", how)["answers"], serde_json::json!(expected(true)), "{how}");
        assert_eq!(ask(name, "aaaa", how)["answers"], serde_json::json!(expected(false)), "{how}");
    }
    assert_eq!(ask("nobody.shop.svc.cluster.local.", "a", "connected")["code"], "Non-Existent Domain");
    serve(&second, &["http", "--name", "web-1"]);
    assert_eq!(get(&asker, "http://web-1.each:8080/")["name"], "web-1");
    first.remove().expect("a pod that goes");
    assert_eq!(ask("each.shop.svc.cluster.local.", "a", "connected")["answers"][0], second.ip().to_string());
}

#[test]
fn a_pod_is_where_it_should_be() {
    let (lab, pod) = with_client();
    let run = |args: &[&str]| pod.run(args).expect("a program").stdout;
    assert_eq!(run(&["hostname"]), "client\n");
    assert!(run(&["cat", "/etc/hosts"]).contains(&format!("{} client", pod.ip())));
    assert!(run(&["cat", "/etc/resolv.conf"]).starts_with("search shop.svc.cluster.local svc.cluster.local"));
    let cgroup = run(&["cat", "/proc/self/cgroup"]);
    let own = format!("0::/{}/n1/kubepods/pod{}", lab.name(), pod.uid());
    assert!(cgroup.lines().any(|line| line == own), "{own} in {cgroup}");
    let kubelet = lab.node(0).run(Slice::Kubelet, ["cat", "/proc/self/cgroup"]).expect("a program").stdout;
    assert!(kubelet.contains(&format!("0::/{}/n1/kubelet\n", lab.name())), "{kubelet}");
    let outside = fs::read_link("/proc/self/ns/net").expect("our own namespace");
    let inside = run(&["readlink", "/proc/self/ns/net"]);
    assert_ne!(outside.to_string_lossy(), inside.trim());
    let same =
        pod.netns().run(|| fs::read_link("/proc/thread-self/ns/net").expect("a namespace")).expect("entered");
    assert_eq!(same.to_string_lossy(), inside.trim());
}

#[test]
fn manifests_say_what_is_there() {
    let (lab, pod) = with_client();
    let read = |name: &str| fs::read_to_string(lab.manifests().join(name));
    lab.label_namespace("shop", "istio.io/dataplane-mode", Some("ambient")).expect("a change");
    let namespace = read("namespace_shop.yaml").expect("a namespace");
    assert!(namespace.contains("istio.io/dataplane-mode: ambient"), "{namespace}");
    lab.label_namespace("shop", "istio.io/dataplane-mode", None).expect("a change");
    assert!(!read("namespace_shop.yaml").expect("a namespace").contains("ambient"));
    pod.label("version", Some("2")).expect("a change");
    let text = read("pod_shop_client.yaml").expect("a pod");
    for part in ["nodeName: n1", pod.uid(), &pod.ip().to_string(), "version: \"2\""] {
        assert!(text.contains(part), "{part} in {text}");
    }
    lab.apply_yaml("deny.yaml", "kind: AuthorizationPolicy\n").expect("a file");
    assert_eq!(read("deny.yaml").expect("the file"), "kind: AuthorizationPolicy\n");
    lab.delete_yaml("deny.yaml").expect("a file that goes");
    pod.remove().expect("a pod that goes");
    assert!(read("deny.yaml").is_err() && read("pod_shop_client.yaml").is_err());
}

#[test]
fn without_ipv6_there_is_none() {
    let lab = start(LabConfig { ipv6: false, ..LabConfig::default() });
    let pod = lab.node(0).add_pod(PodSpec::new("shop", "a")).expect("a pod");
    assert_eq!(pod.ips().len(), 1);
    let addresses = pod.run(["ip", "-6", "addr"]).expect("ip").stdout;
    assert_eq!(addresses, "", "no address, not even a link-local one");
    let other = lab.node(1).add_pod(PodSpec::new("shop", "b")).expect("a pod");
    serve(&other, &["http", "--listen", "0.0.0.0:8080"]);
    get(&pod, &format!("http://{}:8080/", other.ip()));
}

#[test]
fn bench_settings_reach_every_pod() {
    let lab = start(LabConfig { tuning: Tuning::bench(), capture: false, ..LabConfig::default() });
    let pod = lab.node(1).add_pod(PodSpec::new("shop", "a")).expect("a pod");
    let settings = ["tcp_congestion_control", "tcp_max_tw_buckets", "ip_local_port_range"];
    let paths = settings.map(|name| format!("/proc/sys/net/ipv4/{name}"));
    let seen = pod.run(Program::new("cat").args(&paths)).expect("cat").stdout;
    assert_eq!(seen, "reno\n64\n10000\t65001\n");
}

#[test]
fn addresses_can_be_reused_and_collisions_are_refused() {
    let (lab, pod) = with_client();
    let again = lab.node(1).add_pod(PodSpec::new("shop", "client")).expect_err("the name is taken");
    assert!(matches!(&again, LabError::Refused(reason) if reason.contains("exists already")), "{again}");
    let (ip, number) = (pod.ip(), 2);
    pod.remove().expect("a pod that goes");
    let spec = PodSpec { host_number: Some(number), ..PodSpec::new("shop", "heir") };
    let heir = lab.node(0).add_pod(spec).expect("a pod");
    assert_eq!(heir.ip(), ip);
    serve(&heir, &["http"]);
    assert_eq!(get(&heir, &format!("http://{ip}:8080/"))["name"], "http");
}

#[test]
fn a_pod_with_host_network_shares_the_node() {
    let (lab, client) = with_client();
    let host = lab.node(1).add_pod(PodSpec::new("shop", "host").host_network()).expect("a pod");
    assert_eq!(host.ips(), lab.node(1).ips());
    serve(&host, &["http", "--name", "host"]);
    assert_eq!(get(&client, &format!("http://{}:8080/", host.ip()))["name"], "host");
    host.remove().expect("a pod that goes");
    let output =
        client.run(["curl", "-sS", "-m", "10", &format!("http://{}:8080/", host.ip())]).expect("curl");
    assert_eq!(output.code(), Some(7), "refused: the node is there, the pod's program is not: {output:?}");
}

#[test]
fn the_outside_is_reachable_by_name() {
    let (lab, client) = with_client();
    lab.add_outside_name("api.example.com", &lab::OUTSIDE.ips(true)).expect("a name");
    let server = lab.spawn_outside(["lab-app", "http", "--name", "outside"]).expect("a server");
    server.wait_for_line("listening on", SOON).expect("a server that listens");
    assert_eq!(get(&client, "http://api.example.com:8080/")["name"], "outside");
    let nowhere = client.run(["curl", "-sS", "-m", "10", "http://198.51.100.1/"]).expect("curl");
    assert_eq!(nowhere.code(), Some(7), "unreachable at once, not timed out: {nowhere:?}");
}

#[test]
fn a_mesh_process_that_ends_early_says_why() {
    let dir = std::env::temp_dir().join(format!("lab-no-binaries-{:08x}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory");
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_lab-run"));
    std::os::unix::fs::symlink(program, dir.join("lab-run")).expect("a link");
    let lab = start(LabConfig { binaries: Some(dir.clone()), ..LabConfig::default() });
    let missing = lab.start_controller(lab::Env::new()).expect_err("there is no controller");
    assert!(missing.to_string().contains("cargo build -p controller"), "{missing}");
    // A program that is no ztunnel: it prints its usage and ends.
    std::os::unix::fs::symlink(program, dir.join("ztunnel")).expect("a link");
    let ended = lab.node(0).start_ztunnel(lab::Env::new()).expect_err("it ends at once");
    assert!(
        ended.to_string().contains("ended early") && ended.to_string().contains("usage: lab-run"),
        "{ended}"
    );
    fs::remove_dir_all(dir).expect("our own directory");
}
