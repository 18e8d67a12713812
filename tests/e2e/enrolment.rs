//! Pods that enter and leave the mesh, by label, by birth and by death: nobody is disturbed, mixed up or left behind.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use lab::{Pod, PodSpec, Program};
use serde_json::{Value, json};

use crate::load::{Held, Load};
use crate::mesh::{AMBIENT, Mesh, SOON, comes_from, controller, get, logged, refused, serve, workload};

/// Pods that enter and leave at once, and how often each does: fifty times in all.
const MEMBERS: usize = 10;
const ROUNDS: usize = 5;

/// A pod that is gone may have taken its last word with it. Then its peers ask its tunnels after 10 s whether they are alive,
/// and wait 20 s for the answer.
const NO_LAST_WORD: Duration = Duration::from_secs(60);

/// The opposite of what the namespace says, for one pod.
const OUT: &str = "none";

fn at(pod: &Pod, port: u16) -> String {
    SocketAddr::new(pod.ip(), port).to_string()
}

fn at6(pod: &Pod, port: u16) -> String {
    SocketAddr::new(pod.ip6(), port).to_string()
}

/// Waits until every ztunnel has heard how this pod is reached.
fn heard(mesh: &Mesh, pod: &Pod, protocol: &str) {
    mesh.until_dumps(&format!("{} is reached by {protocol}", pod.name()), |dump| {
        match workload(dump, pod).map(|workload| &workload["protocol"]) {
            Some(known) if known == protocol => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// What the pod's own ztunnel says of it.
fn status(pod: &Pod) -> Value {
    let pods = pod.node().enrolment().expect("the node API answers");
    pods.as_array().into_iter().flatten().find(|known| known["uid"] == pod.uid()).cloned().unwrap_or_default()
}

fn wait_for_message(pod: &Pod, text: &str) {
    lab::wait_until(&format!("{text:?} of {}", pod.name()), SOON, || {
        let status = status(pod);
        if status["message"].as_str().is_some_and(|said| said.contains(text)) { Ok(()) } else { Err(status) }
    })
    .expect("a status");
}

/// Everything in a pod's namespace that enrolment touches.
pub(crate) fn fingerprint(pod: &Pod) -> String {
    let script = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
                  cd /proc/sys/net; grep . ipv4/tcp_fwmark_accept ipv4/fwmark_reflect ipv6/fwmark_reflect ipv4/tcp_migrate_req";
    let output = pod.run(["sh", "-c", script]).expect("an end");
    assert!(output.success(), "{output:?}");
    output.stdout
}

/// Waits until a pod that left the mesh is as it was before.
fn nothing_is_left(pod: &Pod, before: &str) {
    pod.wait_for_state("not wanted", SOON).expect("it has left");
    assert_eq!(fingerprint(pod), before, "rules, routes and sysctls of {}", pod.name());
    nothing_is_pinned(pod);
    let listening = pod.run(["ss", "-Hlntu"]).expect("an end").stdout;
    for port in [":15001 ", ":15006 ", ":15008 "] {
        assert!(!listening.contains(port), "{}: {listening}", pod.name());
    }
}

pub(crate) fn nothing_is_pinned(pod: &Pod) {
    let path = pod.node().pins().join("pods").join(pod.uid());
    assert!(!path.exists(), "{} is left", path.display());
}

#[test]
fn fifty_times_in_and_out_of_the_mesh_under_load_disturb_nobody() {
    let mesh = Mesh::start();
    let (steady, anchor) = (mesh.pod_in("steady", 0, "steady"), mesh.pod_in("steady", 1, "anchor"));
    let outsider = mesh.pod_in("outside", 1, "outsider");
    serve(&anchor, &["echo"]);
    mesh.enrol("steady", &[&steady, &anchor]);
    thread::scope(|scope| {
        for index in 0..MEMBERS {
            let (mesh, steady, anchor, outsider) = (&mesh, &steady, &anchor, &outsider);
            scope.spawn(move || {
                let name = format!("member-{index}");
                let member = mesh.pod_in(&name, index % 2, &name);
                serve(&member, &["echo"]);
                in_and_out(mesh, &member, [steady, anchor, outsider]);
            });
        }
    });
}

fn in_and_out(mesh: &Mesh, member: &Pod, [steady, anchor, outsider]: [&Pod; 3]) {
    let before = fingerprint(member);
    let loads = [
        Load::gentle(steady, &at(member, 8080)),
        Load::gentle(outsider, &at6(member, 8080)),
        Load::gentle(member, &at(anchor, 8080)),
    ];
    let held = || {
        [
            Held::open(steady, &at6(member, 8080), 2),
            Held::open(outsider, &at(member, 8080), 2),
            Held::open(member, &at6(anchor, 8080), 2),
        ]
    };
    for _ in 0..ROUNDS {
        let direct = held();
        mesh.enrol(member.namespace(), &[member]);
        loads.iter().for_each(Load::progress);
        let captured = held();
        direct.into_iter().for_each(Held::must_still_work);

        mesh.lab.label_namespace(member.namespace(), AMBIENT, None).expect("a label");
        wait_for_message(member, "still captured");
        heard(mesh, member, "TCP");
        loads.iter().for_each(Load::progress);
        wait_for_message(member, "last captured connections");
        loads.iter().for_each(Load::progress);
        captured.into_iter().for_each(Held::must_still_work);
        nothing_is_left(member, &before);
    }
    loads.into_iter().for_each(Load::must_have_succeeded);
}

#[test]
fn a_pods_own_label_overrides_its_namespaces_both_ways() {
    let mesh = Mesh::start();
    let peer = mesh.pod_in("shop", 0, "peer");
    let labelled = |namespace: &str, name: &str, value: &str| {
        let spec = PodSpec::new(namespace, name).service_account(name).label(AMBIENT, value);
        mesh.node(1).add_pod(spec).expect("a pod")
    };
    let out = labelled("shop", "out", OUT);
    let inside = labelled("wild", "inside", "ambient");
    let host = mesh.node(1).add_pod(PodSpec::new("shop", "host").host_network()).expect("a pod");
    for pod in [&out, &inside] {
        serve(pod, &["http"]);
    }
    serve(&host, &["http", "--listen", "[::]:8090"]);
    mesh.enrol("shop", &[&peer]);
    inside.wait_for_state("enrolled", SOON).expect("its own label counts");
    mesh.settled(&[&inside]);
    out.wait_for_state("not wanted", SOON).expect("its own label counts");
    let canary = "canary-of-labels";
    let seen = mesh.lab.wire().watch(canary);
    let clear = |pod: &Pod, port: u16| {
        let before = seen.count().expect("a whole capture");
        for ip in pod.ips() {
            get(&peer, &format!("http://{}/{canary}", SocketAddr::new(*ip, port)));
        }
        seen.count().expect("a whole capture") > before
    };
    assert!(clear(&out, 8080), "a pod that is kept out gets plaintext");
    assert!(clear(&host, 8090), "so does a pod of the node's own network");
    assert!(!clear(&inside, 8080), "a pod that asked for the mesh does not");

    out.label(AMBIENT, None).expect("a label");
    inside.label(AMBIENT, None).expect("a label");
    mesh.settled(&[&out]);
    heard(&mesh, &inside, "TCP");
    assert!(!clear(&out, 8080), "without a label of its own the namespace's counts");
    assert!(clear(&inside, 8080), "and the other way round");
    inside.wait_for_state("not wanted", SOON).expect("it has left");

    out.label(AMBIENT, Some(OUT)).expect("a label");
    inside.label(AMBIENT, Some("ambient")).expect("a label");
    mesh.settled(&[&inside]);
    heard(&mesh, &out, "TCP");
    assert!(clear(&out, 8080) && !clear(&inside, 8080), "and back");
}

#[test]
fn a_pod_that_is_born_into_the_mesh_is_captured_from_its_first_connection_on() {
    let mesh = Mesh::start();
    let (peer, twin) = (mesh.pod(0, "peer"), mesh.pod(1, "twin"));
    for pod in [&peer, &twin] {
        serve(pod, &["http"]);
    }
    mesh.enrol("shop", &[&peer, &twin]);
    let canary = "canary-of-the-newborn";
    let seen = mesh.lab.wire().watch(canary);
    for index in 0..10 {
        let newborn = mesh.pod(1, &format!("newborn-{index}"));
        // The lab has waited, as a kubelet does, until ztunnel said that the pod may run. This is its first process.
        get(&newborn, &format!("http://{}/{canary}", at(&peer, 8080)));
        get(&newborn, &format!("http://{}/{canary}", at6(&peer, 8080)));
        get(&newborn, &format!("http://{}/{canary}", at(&twin, 8080)));
        serve(&newborn, &["http"]);
        let answer = get(&peer, &format!("http://{}/{canary}", at(&newborn, 8080)));
        assert!(comes_from(&answer, &peer), "{answer}");
    }
    assert_eq!(seen.count().expect("a whole capture"), 0, "nothing of it crosses the wire in the clear");
}

#[test]
fn callers_that_cannot_wait_send_nothing_in_the_clear_to_a_pod_that_is_born() {
    let mesh = Mesh::start();
    let caller = mesh.pod(0, "caller");
    let service = mesh.service("shop", "newborn", 80, 8080);
    mesh.enrol("shop", &[&caller]);
    // What each request begins with.
    let seen = mesh.lab.wire().watch("GET /load");
    let to = SocketAddr::new(service.ips[0], 80).to_string();
    let hammer = Program::new("lab-app").args(["load", "--protocol", "http", "--mode", "new", "--to", &to]);
    let hammer = caller.spawn(hammer.args(["--connections", "2", "--interval-ms", "1"])).expect("a load");
    for index in 0..10 {
        let name = format!("newborn-{index}");
        let spec = PodSpec::new("shop", &name).service_account("newborn").label("app", "newborn");
        let newborn = mesh.node(1).add_pod(spec).expect("a pod");
        let server = newborn.spawn(Program::new("lab-app").args(["http", "--log"])).expect("a server");
        server.wait_for_line("{\"client\"", SOON).expect("a request");
        newborn.remove().expect("removed");
    }
    hammer.kill().expect("its end");
    assert_eq!(seen.count().expect("a whole capture"), 0, "nothing crosses the wire in the clear");
}

#[test]
fn a_pod_that_goes_is_forgotten_by_all_and_leaves_nothing() {
    let mesh = Mesh::start();
    let caller = mesh.pod(0, "caller");
    let replica = |index: usize| {
        let name = format!("replica-{index}");
        let spec = PodSpec::new("shop", &name).service_account("replica").label("app", "replica");
        let pod = mesh.node(1).add_pod(spec).expect("a pod");
        serve(&pod, &["echo"]);
        pod
    };
    let mut replicas = vec![replica(0), replica(1)];
    let service = mesh.service("shop", "replica", 80, 8080);
    mesh.enrol("shop", &[&caller, &replicas[0], &replicas[1]]);
    let load = Load::new_connections(&caller, &SocketAddr::new(service.ips[0], 80).to_string());
    for index in 2..8 {
        let new = replica(index);
        mesh.settled(&[&new]);
        replicas.push(new);
        let gone = replicas.remove(0);
        let held = Held::open(&caller, &at(&gone, 8080), 2);
        gone.start_deletion().expect("asked to go");
        mesh.until_dumps("it takes no new connections", |dump| match workload(dump, &gone) {
            Some(known) if known["status"] == "Healthy" => Err(known.to_string()),
            _ => Ok(()),
        });
        load.progress();
        held.must_still_work();
        gone.remove().expect("removed");
        mesh.until_dumps("it is gone", |dump| match workload(dump, &gone) {
            None => Ok(()),
            Some(known) => Err(known.to_string()),
        });
        load.progress();
        nothing_is_pinned(&gone);
        assert_eq!(status(&gone), Value::Null, "its node knows it no more");
        lab::wait_until("the tunnels to it are closed", NO_LAST_WORD, || {
            let open = caller.run(["ss", "-Htn", "state", "established"]).expect("an end").stdout;
            let to = at(&gone, 15008);
            if open.contains(&to) { Err(open) } else { Ok(()) }
        })
        .expect("closed tunnels");
    }
    load.must_have_succeeded();
}

/// What is told of a pod instead of the truth.
type Story = fn(&mut Value);

/// Says to a ztunnel what the lab would not.
pub(crate) fn announce(pod: &Pod, change: impl Fn(&mut Value)) -> Value {
    let mut sandbox = json!({
        "uid": pod.uid(), "namespace": pod.namespace(), "name": pod.name(), "service_account": pod.service_account(),
        "netns": pod.netns().path(), "addresses": pod.ips(),
    });
    change(&mut sandbox);
    tell(pod, &json!({ "add": sandbox }))
}

/// Gives the ztunnel of a pod's node a command.
pub(crate) fn tell(pod: &Pod, command: &Value) -> Value {
    let mut stream = UnixStream::connect(pod.node().run_dir().join("node.sock")).expect("a node API");
    stream.write_all(format!("{command}\n").as_bytes()).expect("a reader");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    serde_json::from_str(&line).expect("an answer in JSON")
}

#[test]
fn a_pod_of_whom_two_stories_are_told_is_captured_refused_and_reported() {
    let mesh = Mesh::start();
    let (peer, odd) = (mesh.pod(0, "peer"), mesh.pod(1, "odd"));
    for pod in [&peer, &odd] {
        serve(pod, &["http"]);
    }
    mesh.enrol("shop", &[&peer, &odd]);
    let canary = "canary-of-the-odd-one";
    let seen = mesh.lab.wire().watch(canary);
    let urls =
        |pod: &Pod| [at(pod, 8080), at6(pod, 8080)].map(|address| format!("http://{address}/{canary}"));
    let stories: [(&str, Story); 2] = [
        ("service account", |sandbox| sandbox["service_account"] = json!("admin")),
        ("addresses", |sandbox| drop(sandbox["addresses"].as_array_mut().and_then(Vec::pop))),
    ];
    for (what, story) in stories {
        assert_eq!(announce(&odd, story)["state"], "failed", "{what}");
        wait_for_message(&odd, what);
        urls(&peer).iter().for_each(|url| refused(&odd, url));
        urls(&odd).iter().for_each(|url| refused(&peer, url));
        let reported = || {
            let told = controller(&mesh.lab, "/enrolments");
            let mut all = told.as_array().into_iter().flatten();
            let known = all.find(|known| known["uid"] == odd.uid()).cloned().unwrap_or_default();
            let said = known["message"].as_str().is_some_and(|message| message.contains(what));
            if said && known["reported"] == "Failed" { Ok(()) } else { Err(known) }
        };
        lab::wait_until("the controller knows", SOON, reported).expect("a report");

        assert_eq!(announce(&odd, |_| {})["state"], "enrolled", "{what}");
        urls(&peer).iter().for_each(|url| drop(get(&odd, url)));
        urls(&odd).iter().for_each(|url| drop(get(&peer, url)));
    }
    assert_eq!(seen.count().expect("a whole capture"), 0, "nothing of it crosses the wire in the clear");
}

/// How often an address changes hands.
const TENANTS: usize = 12;

#[test]
fn an_address_that_changes_hands_never_lends_its_identity() {
    let mesh = Mesh::start();
    let accounts = ["red", "blue"];
    let guarded = accounts.map(|account| {
        let name = format!("only-{account}");
        let pod = mesh.pod(1, &name);
        serve(&pod, &["http", "--name", &name]);
        let policy = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec:\n  selector: {{matchLabels: {{app: {name}}}}}\n  action: ALLOW\n  rules:\n  - from:\n    - source: \
             {{principals: [cluster.local/ns/shop/sa/{account}]}}\n"
        );
        mesh.lab.apply_yaml(&format!("{name}.yaml"), &policy).expect("a policy");
        pod
    });
    let caller = mesh.pod(1, "caller");
    mesh.enrol("shop", &[&guarded[0], &guarded[1], &caller]);
    mesh.until_dumps("the policies", |dump| {
        let known = dump["policies"].to_string();
        if guarded.iter().all(|pod| known.contains(pod.name())) { Ok(()) } else { Err(known) }
    });
    for index in 0..TENANTS {
        let mine = index % 2;
        let name = format!("tenant-{index}");
        let mut spec = PodSpec::new("shop", &name).service_account(accounts[mine]).label("app", "tenant");
        spec.host_number = Some(77);
        let tenant = mesh.node(0).add_pod(spec).expect("a pod");
        serve(&tenant, &["http", "--name", &name]);
        // As a client it is who it is, from its first connection on.
        let answer = get(&tenant, &format!("http://{}/", at(&guarded[mine], 8080)));
        assert_eq!(answer["name"], format!("only-{}", accounts[mine]));
        refused(&tenant, &format!("http://{}/", at(&guarded[1 - mine], 8080)));
        // And as a server: callers expect nobody else at this address.
        mesh.settled(&[&tenant]);
        for address in [at(&tenant, 8080), at6(&tenant, 8080)] {
            assert_eq!(get(&caller, &format!("http://{address}/"))["name"], name);
        }
        let log = logged(&mesh.node(0), &[&name, "direction=\"inbound\""]);
        assert!(log.contains(&format!("/sa/{}\"", accounts[mine])), "{log}");
        tenant.remove().expect("removed");
    }
}
