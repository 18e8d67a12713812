//! The control plane away, back, wrong and renewed: what nodes know stays in force, and nothing falls back to plaintext.

use std::net::SocketAddr;
use std::time::Duration;

use lab::{Env, Lab, LabConfig, Node, Pod, Process, Program, Slice};
use serde_json::Value;

use crate::load::{Held, Load};
use crate::mesh::{AMBIENT, Mesh, SOON, admin, ask_controller, beside, curl, get, is_refusal, serve};
use crate::support::peer::{self, Answer};
use crate::support::proof::{Proof, tls};
use crate::support::raw::{DATA, GOAWAY, frame};

/// Two pods on two nodes with a neighbour, a load between them, and an eye on the wire.
struct Scene {
    mesh: Mesh,
    caller: Pod,
    server: Pod,
    neighbour: Pod,
    /// Not in the mesh.
    late: Pod,
    seen: lab::Watch,
    canary: String,
}

impl Scene {
    fn start(canary: &str, controller: &Env) -> Self {
        let mesh = Mesh { lab: Lab::start(LabConfig::default()).expect("a lab (root is needed)") };
        mesh.lab.start_controller(controller.clone()).expect("a controller");
        for node in mesh.lab.nodes() {
            node.start_ztunnel(Env::new()).expect("a ztunnel");
        }
        let [caller, server, neighbour] =
            [(0, "caller"), (1, "server"), (0, "neighbour")].map(|(node, name)| mesh.pod(node, name));
        let late = mesh.pod_in("late", 1, "late");
        for pod in [&server, &neighbour, &late] {
            serve(pod, &["http"]);
            serve(pod, &["echo", "--listen", "[::]:8081"]);
        }
        mesh.service("shop", "server", 80, 8080);
        mesh.enrol("shop", &[&caller, &server, &neighbour]);
        let seen = mesh.lab.wire().watch(canary);
        Self { mesh, caller, server, neighbour, late, seen, canary: canary.to_owned() }
    }

    fn load(&self) -> [Load; 3] {
        [
            Load::new_connections(&self.caller, &SocketAddr::new(self.server.ip(), 8081).to_string()),
            Load::new_connections(&self.caller, &SocketAddr::new(self.neighbour.ip6(), 8081).to_string()),
            Load::kept_connections(&self.caller, &SocketAddr::new(self.server.ip6(), 8081).to_string()),
        ]
    }

    fn urls(&self, pod: &Pod) -> Vec<String> {
        pod.ips().iter().map(|ip| format!("http://{}/{}", SocketAddr::new(*ip, 8080), self.canary)).collect()
    }

    /// New connections by name, by both families, to the other node and to a neighbour, none of them in the clear.
    fn works(&self) {
        get(&self.caller, &format!("http://server.shop/{}", self.canary));
        for url in [self.urls(&self.server), self.urls(&self.neighbour)].concat() {
            get(&self.caller, &url);
        }
        self.nothing_in_the_clear();
    }

    fn nothing_in_the_clear(&self) {
        assert_eq!(
            self.seen.count().expect("a whole capture"),
            0,
            "the canary crosses the wire in the clear"
        );
    }

    fn stop_controller(&self) {
        self.mesh.lab.stop_controller().expect("stopped");
    }
}

/// Starts a ztunnel of whom nobody expects that it becomes ready.
fn spawn_ztunnel(node: &Node) -> Process {
    let program = Program::new(beside("ztunnel"));
    let program = node.ztunnel_env().into_iter().fold(program, |it, (name, value)| it.env(name, value));
    let process = node.spawn(Slice::System, program).expect("a ztunnel");
    process.wait_for_line("ztunnel has started", SOON).expect("it runs");
    process
}

/// One request to the controller's admin socket, which answers it.
pub(crate) fn controller(lab: &Lab, method: &str, path: &str) -> Value {
    let said = ask_controller(lab, method, path);
    let text = String::from_utf8_lossy(&said);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{method} {path}: {error} in {text:?}"))
}

#[test]
fn without_a_controller_everything_goes_on_and_with_one_again_it_catches_up() {
    let scene = Scene::start("canary-of-an-outage", &Env::new());
    let Scene { mesh, caller, server, late, .. } = &scene;
    let load = scene.load();
    let held = Held::open(caller, &SocketAddr::new(server.ip(), 8081).to_string(), 4);

    scene.stop_controller();
    load.iter().for_each(Load::progress);
    scene.works();
    // What is decided now takes effect when the controller is back.
    mesh.lab.label_namespace("late", AMBIENT, Some("ambient")).expect("a label");

    // A successor that can't learn what it must leaves its predecessor in charge.
    let node = mesh.node(0);
    let successor = spawn_ztunnel(&node);
    load.iter().for_each(Load::progress);
    scene.works();
    assert!(admin(&node, "/pods").to_string().contains("enrolled"), "the one in charge answers");
    successor.terminate().expect("it ends when asked");
    load.iter().for_each(Load::progress);
    for load in load {
        load.must_have_succeeded();
    }
    held.must_still_work();

    // A node whose ztunnel dies in an outage knows neither its peers nor its policies, and has no keys: its pods stay
    // captured and are refused until the controller is back.
    node.kill_ztunnel().expect("killed");
    let orphan = spawn_ztunnel(&node);
    for url in [scene.urls(server), scene.urls(late)].concat() {
        let code = curl(caller, &[&url]).code();
        assert!(code.is_some_and(is_refusal), "{url}: {code:?}");
    }
    scene.nothing_in_the_clear();
    assert!(orphan.is_running());

    mesh.lab.start_controller(Env::new()).expect("a controller");
    caller.wait_for_state("enrolled", SOON).expect("served again");
    scene.works();
    late.wait_for_state("enrolled", SOON).expect("what was decided in the outage");
    mesh.settled(&[late]);
    for url in scene.urls(late) {
        get(caller, &url);
    }
    scene.nothing_in_the_clear();
}

#[test]
fn a_controller_that_restarts_downgrades_nobody() {
    let scene = Scene::start("canary-of-restarts", &Env::new());
    let load = scene.load();
    for _ in 0..5 {
        let process = scene.mesh.lab.controller().expect("it runs");
        process.kill().expect("killed");
        scene.works();
        scene.mesh.lab.start_controller(Env::new()).expect("a controller");
        // Each node is back in touch: an answer to this needs a session and its report.
        lab::wait_until("both nodes report", SOON, || {
            let told = controller(&scene.mesh.lab, "GET", "/enrolments");
            let all = told.as_array().cloned().unwrap_or_default();
            let wanted: Vec<_> = all.iter().filter(|known| known["enrol"] == true).collect();
            let reported = wanted.iter().all(|known| known["reported"] == "Enrolled");
            if wanted.len() == 3 && reported { Ok(()) } else { Err(told) }
        })
        .expect("reports");
        scene.works();
        load.iter().for_each(Load::progress);
    }
    load.into_iter().for_each(Load::must_have_succeeded);
    scene.nothing_in_the_clear();
}

#[test]
fn one_bad_file_disturbs_nothing_else() {
    let scene = Scene::start("canary-of-bad-files", &Env::new());
    let Scene { mesh, late, .. } = &scene;
    let load = scene.load();
    let bad = [
        ("broken.yaml", "kind: [\n"),
        ("unknown.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: 7, namespace: [shop]}\n"),
        // An override of a pod that is in the mesh, half written.
        ("pod_shop_server-2.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: server, namespace: shop\n"),
        ("binary.yaml", "\u{0}\u{1}\u{2}"),
    ];
    for (name, text) in bad {
        mesh.lab.apply_yaml(name, text).expect("written");
    }
    lab::wait_until("the bad files are reported", SOON, || {
        let findings = controller(&mesh.lab, "GET", "/findings");
        let files = findings["files"].to_string();
        let missing = bad.iter().find(|(name, _)| !files.contains(name));
        missing.map_or(Ok(()), |(name, _)| Err(format!("{name} is not in {files}")))
    })
    .expect("findings");
    // What is good beside them still counts.
    mesh.lab.label_namespace("late", AMBIENT, Some("ambient")).expect("a label");
    mesh.settled(&[late]);
    scene.works();
    for (name, _) in bad {
        mesh.lab.delete_yaml(name).expect("removed");
    }
    lab::wait_until("the findings are gone", SOON, || {
        let findings = controller(&mesh.lab, "GET", "/findings");
        if findings["files"].as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(findings) }
    })
    .expect("findings");
    load.iter().for_each(Load::progress);
    load.into_iter().for_each(Load::must_have_succeeded);
    scene.works();
}

/// The serial numbers of the certificates that a node holds, with the identities.
fn serials(node: &Node) -> Vec<(String, String)> {
    let held = admin(node, "/certificates");
    let all = held.as_array().into_iter().flatten();
    let serial = |held: &Value| held["certChain"][0]["serialNumber"].as_str().unwrap_or_default().to_owned();
    all.map(|held| (held["identity"].to_string(), serial(held))).collect()
}

/// Waits until every node has got each of its certificates anew.
fn renewed(mesh: &Mesh) {
    let all = || mesh.lab.nodes().flat_map(|node| serials(&node)).collect::<Vec<_>>();
    let before = all();
    assert_eq!(before.len(), 3, "one for each pod: {before:?}");
    lab::wait_until("new certificates", SOON, || {
        let now = all();
        let anew = now.len() == before.len() && !now.iter().any(|serial| before.contains(serial));
        if anew { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .expect("renewals");
}

#[test]
fn certificates_and_the_root_are_renewed_under_load_and_nobody_notices() {
    let scene = Scene::start("canary-of-renewals", &Env::from([("AIRGLOW_CERT_TTL".into(), "12s".into())]));
    let Scene { mesh, caller, server, .. } = &scene;
    let load = scene.load();
    let held = Held::open(caller, &SocketAddr::new(server.ip(), 8081).to_string(), 4);
    renewed(mesh);
    scene.works();

    let roots = |wanted: usize, signs: bool| {
        lab::wait_until("the roots", SOON, || {
            let roots = controller(&mesh.lab, "GET", "/roots");
            let pending = !roots["next_signs_at"].is_null();
            if roots["count"] == wanted && pending != signs { Ok(()) } else { Err(roots) }
        })
        .expect("roots");
    };
    // Long enough for everyone to hear of the new root: nodes hear with each renewal, at half a certificate's life.
    controller(&mesh.lab, "POST", "/rotate-root?overlap=10s");
    roots(2, false);
    load.iter().for_each(Load::progress);
    roots(2, true);
    // From here on every certificate is of the new root.
    renewed(mesh);
    load.iter().for_each(Load::progress);
    scene.works();
    held.must_still_work();
    load.into_iter().for_each(Load::must_have_succeeded);
    scene.nothing_in_the_clear();
}

#[test]
fn a_ca_that_refuses_is_not_noticed_while_certificates_are_valid() {
    let scene =
        Scene::start("canary-of-a-refusing-ca", &Env::from([("AIRGLOW_CERT_TTL".into(), "24s".into())]));
    let Scene { mesh, .. } = &scene;
    let load = scene.load();
    // Nobody can prove which node it is; sessions that stand are not asked again.
    let (tokens, away) = (mesh.lab.dir().join("tokens"), mesh.lab.dir().join("tokens-away"));
    std::fs::rename(&tokens, &away).expect("moved");
    for node in mesh.lab.nodes() {
        lab::wait_until("a renewal that fails", SOON, || {
            let held = admin(&node, "/certificates");
            let failed = |held: &Value| !held["lastFailure"].is_null() && held["state"] == "Available";
            if held.as_array().is_some_and(|all| all.iter().all(failed)) { Ok(()) } else { Err(held) }
        })
        .expect("failures");
    }
    load.iter().for_each(Load::progress);
    scene.works();
    std::fs::rename(&away, &tokens).expect("moved back");
    renewed(mesh);
    load.iter().for_each(Load::progress);
    load.into_iter().for_each(Load::must_have_succeeded);
    scene.works();
}

#[test]
fn a_tunnel_takes_nothing_new_when_the_certificate_that_it_was_made_with_has_expired() {
    let scene = Scene::start("canary-of-an-old-tunnel", &Env::new());
    let Scene { mesh, caller, server, .. } = &scene;
    let proof = Proof::lasting(&mesh.lab, caller, Duration::from_secs(10));
    let mut tunnel =
        peer::tunnel(caller, SocketAddr::new(server.ip(), 15008), &tls(Some(proof))).expect("a tunnel");
    let echo = peer::connect_to(&SocketAddr::new(server.ip(), 8081).to_string());
    assert_eq!(peer::ask(&mut tunnel, 1, &echo), Answer::Status(200));
    let told = lab::wait_until("the tunnel is told to end", SOON, || match tunnel.read_until(GOAWAY) {
        Ok(frame) => Ok(frame.code()),
        Err(error) => Err(error.to_string()),
    });
    assert_eq!(told.expect("a farewell"), 0, "in good order");
    // What is open goes on.
    tunnel.write(&frame(DATA, 0, 1, b"still here")).expect("a tunnel that stands");
    assert_eq!(tunnel.read_until(DATA).expect("an echo").payload, b"still here");
}

#[test]
fn certificates_that_outlive_the_controller_are_not_outlived_by_connections_in_the_clear() {
    let ttl = Env::from([("AIRGLOW_CERT_TTL".into(), "10s".into())]);
    let scene = Scene::start("canary-of-expiry", &ttl);
    let Scene { mesh, caller, server, .. } = &scene;
    let kept = Load::kept_connections(caller, &SocketAddr::new(server.ip(), 8081).to_string());
    scene.stop_controller();
    scene.works();
    let refused = |url: &str| {
        let code = curl(caller, &["-m", "20", url]).code();
        if code.is_some_and(is_refusal) { Ok(()) } else { Err(format!("{code:?}")) }
    };
    // Side by side: each is refused only after it has waited for a certificate.
    std::thread::scope(|scope| {
        for url in scene.urls(server) {
            scope.spawn(move || {
                lab::wait_until("expiry", SOON, || refused(&url)).expect("no certificate, no connection");
            });
        }
    });
    scene.nothing_in_the_clear();
    kept.progress();
    kept.must_have_succeeded();

    mesh.lab.start_controller(ttl).expect("a controller");
    for url in scene.urls(server) {
        lab::wait_until("new certificates", 3 * SOON, || {
            let output = curl(caller, &[&url]);
            if output.success() { Ok(()) } else { Err(format!("{output:?}")) }
        })
        .expect("connections again");
    }
    scene.works();
}
