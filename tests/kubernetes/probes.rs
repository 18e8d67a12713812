//! Kubelet and its user reach pods of the mesh as if there were none, however strict it is; whoever only looks like them does not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use lab::APP_IMAGE;

use crate::mesh::{AMBIENT, failures, meshed, pod, strict};
use crate::{Namespace, PATIENCE, eventually, shared};

/// A pod whose containers are probed in each of the ways that there are, every second.
fn probed() -> String {
    let container = |name: &str, args: &str, probes: &str| {
        format!("  - {{name: {name}, image: {APP_IMAGE}, {args}, {probes}}}\n")
    };
    let serve = "openssl req -config /dev/null -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=probed -days 1 \
                 -keyout /tmp/key -out /tmp/crt 2>/dev/null && exec openssl s_server -quiet -www -accept 8443 -key /tmp/key -cert /tmp/crt";
    let containers = [
        container(
            "http",
            "args: [http, --name, probed, --log]",
            "startupProbe: {httpGet: {path: /start, port: 8080}, periodSeconds: 1, failureThreshold: 60}, \
             readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}, \
             livenessProbe: {httpGet: {path: /live, port: 8080}, periodSeconds: 1, failureThreshold: 10}",
        ),
        container(
            "https",
            &format!("command: [sh, -c, \"{serve}\"], volumeMounts: [{{name: tmp, mountPath: /tmp}}]"),
            "readinessProbe: {httpGet: {scheme: HTTPS, path: /, port: 8443}, periodSeconds: 1}",
        ),
        container(
            "tcp",
            "args: [echo, --listen, \"[::]:8081\"]",
            "readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}",
        ),
        container(
            "grpc",
            "args: [grpc, --listen, \"[::]:8082\"]",
            "readinessProbe: {grpc: {port: 8082}, periodSeconds: 1}",
        ),
        container(
            "exec",
            "stdin: true, command: [sh, -c, \"echo begun; while read -r line; do echo heard $line; done; exec sleep 3600\"]",
            "readinessProbe: {exec: {command: [curl, -sSf, \"http://127.0.0.1:8080/exec\"]}, periodSeconds: 1}",
        ),
    ];
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: probed, namespace: clinic, labels: {{app: probed}}}}\n\
         spec:\n  nodeSelector: {{kubernetes.io/hostname: n1}}\n  terminationGracePeriodSeconds: 0\n  \
         volumes: [{{name: tmp, emptyDir: {{}}}}]\n  containers:\n{}",
        containers.concat()
    )
}

/// A pod whose readiness is asked where nobody listens.
fn closed() -> String {
    pod("clinic", "closed", "n1", &["echo"]).replace(
        "args: [\"echo\"]}",
        "args: [echo], readinessProbe: {tcpSocket: {port: 9}, periodSeconds: 1}}",
    )
}

/// A pod that may use any address as its own.
fn forger(node: &str) -> String {
    pod("forgers", &format!("forger-{node}"), node, &["echo"]).replace(
        "args: [\"echo\"]}",
        "args: [echo], securityContext: {runAsUser: 0, capabilities: {add: [NET_ADMIN, NET_RAW]}}}",
    )
}

#[test]
fn probes_and_kubectl_reach_a_strict_pod_and_forgers_do_not() {
    let (clinic, forgers) = (Namespace::new(meshed(), "clinic"), Namespace::new(meshed(), "forgers"));
    clinic.kubectl(&["label", "namespace", "clinic", &format!("{AMBIENT}=ambient")]);
    let daemon = pod("forgers", "daemon", "n1", &["echo", "--listen", "127.0.0.1:18080"])
        .replace("spec:\n", "spec:\n  hostNetwork: true\n");
    let manifests = [strict("clinic"), probed(), closed(), forger("n1"), forger("n2"), daemon];
    meshed().apply(&manifests.concat()).expect("valid manifests");
    let ready = ["wait", "pod/probed", "--for=condition=Ready", "--timeout=120s"];
    if let Err(error) = meshed().kubectl(&[&["-n", "clinic"], &ready[..]].concat()) {
        panic!("{error}\n{}\n{}", clinic.kubectl(&["describe", "pod", "probed"]), failures("clinic"));
    }
    clinic.joined();
    forgers.ready();

    impostors_are_refused(&clinic, &forgers);
    kubectl_works(&clinic);

    // Who asks where nobody listens has to hear so, and not that a ztunnel is there.
    eventually("kubelet says why a pod is not ready", || {
        let events = clinic.kubectl(&["get", "events", "--field-selector=involvedObject.name=closed"]);
        if events.contains("connection refused") { Ok(()) } else { Err(events) }
    });
    let restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    assert_eq!(clinic.kubectl(&["get", "pods", "-o", restarts]), "0 0 0 0 0 0", "all live on");
    let seen = clinic.kubectl(&["logs", "probed", "-c", "http"]);
    assert!(seen.lines().filter(|line| line.contains("\"client\"")).count() > 3, "kubelet was there: {seen}");
}

/// Nobody who is not kubelet gets in without an identity, whatever address is written on it.
fn impostors_are_refused(clinic: &Namespace<'_>, forgers: &Namespace<'_>) {
    let pods = clinic.all_pods();
    let probed = pods.iter().find(|pod| pod.name == "probed").expect("it is there");
    let address = format!("{}:8080", probed.ip);
    for plain in ["daemon", "forger-n1", "forger-n2"] {
        eventually(&format!("{plain} is refused"), || {
            match forgers.exec(plain, &["curl", "-sS", "-m", "10", &format!("http://{address}/forged-plain")])
            {
                // 7, 55, 56: refused or reset.
                Err(said)
                    if [" 7", " 55", " 56"].iter().any(|code| said.contains(&format!("exit code{code}"))) =>
                {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        });
    }
    // The addresses that kubelet's own probes come from: the pods' gateway, and the node's on its network.
    let sources: Vec<String> =
        probe_sources(clinic).into_iter().chain([shared().node(0).ips()[0].to_string()]).collect();
    for (forger, source) in [("forger-n1", 0), ("forger-n2", 0), ("forger-n1", 1), ("forger-n2", 1)] {
        let from = format!("{}:0", sources[source]);
        let words = [
            "lab-app",
            "attempt",
            "--to",
            &address,
            "--canary",
            "GET /forged HTTP/1.0\r\n\r\n",
            "--way",
            "foreign",
        ];
        let words = [&words[..], &["--from", &from, "--patience-ms", "1000"]].concat();
        let outcome = forgers.exec(forger, &words).unwrap_or_else(|error| panic!("{error}"));
        assert!(!outcome.contains("answered"), "{forger} as {from}: {outcome}");
    }
    let requests = clinic.kubectl(&["logs", "probed", "-c", "http"]);
    let sources_seen = requests.lines().filter(|line| {
        line.contains("\"client\"") && !line.contains(&sources[0]) && !line.contains("127.0.0.1")
    });
    assert_eq!(
        sources_seen.collect::<Vec<_>>(),
        Vec::<&str>::new(),
        "the application hears kubelet and itself only"
    );
}

/// Where kubelet's probes come from, as the application sees it.
fn probe_sources(clinic: &Namespace<'_>) -> Option<String> {
    let line = clinic.kubectl(&["logs", "probed", "-c", "http"]);
    let clients = line.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut clients = clients.filter_map(|line| line["client"].as_str().map(str::to_owned));
    let client = clients.find(|client| !client.starts_with("127."))?;
    client.rsplit_once(':').map(|(ip, _)| ip.to_owned())
}

/// What people do with a pod by way of the API server.
fn kubectl_works(clinic: &Namespace<'_>) {
    assert_eq!(clinic.exec("probed/tcp", &["sh", "-c", "echo done"]).expect("exec works").trim(), "done");
    assert!(clinic.says("probed/tcp", "listening on").contains("8081"));

    let (mut forward, line) = kubectl(&["port-forward", "pod/probed", ":8080"], "Forwarding from 127.0.0.1:");
    let port =
        line.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split(' ').next()?.parse::<u16>().ok());
    let mut stream = TcpStream::connect(("127.0.0.1", port.expect("a port"))).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("an option");
    stream.write_all(b"GET /forwarded HTTP/1.1\r\nHost: probed\r\n\r\n").expect("it is taken");
    let mut answer = Vec::new();
    while !answer.ends_with(b"}\n") {
        let mut part = [0; 4096];
        let length = stream.read(&mut part).expect("an answer");
        assert!(length > 0, "an end after {}", answer.escape_ascii());
        answer.extend_from_slice(&part[..length]);
    }
    assert!(String::from_utf8_lossy(&answer).contains("/forwarded"), "{}", answer.escape_ascii());
    end(&mut forward);

    let (mut attached, line) = kubectl(&["attach", "-i", "probed", "-c", "exec"], "heard attached");
    assert_eq!(line, "heard attached");
    end(&mut attached);
}

/// Starts kubectl with a word on its standard input, which stays open, and waits for a line.
fn kubectl(args: &[&str], part: &'static str) -> (Child, String) {
    let mut command = Command::new(shared().kubectl_program());
    command.arg("--kubeconfig").arg(shared().kubeconfig()).args(["-n", "clinic"]).args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("kubectl");
    child.stdin.as_mut().expect("it is piped").write_all(b"attached\n").expect("it is open");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let (found, line) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut lines = lines.map_while(Result::ok);
        drop(found.send(lines.find(|line| line.contains(part))));
        // It ends when nobody reads any more.
        lines.for_each(drop);
    });
    let line = line.recv_timeout(PATIENCE).ok().flatten();
    let line = line.unwrap_or_else(|| {
        end(&mut child);
        panic!("kubectl {args:?} did not say {part:?}")
    });
    (child, line)
}

fn end(child: &mut Child) {
    child.kill().expect("it runs");
    child.wait().expect("its end");
}
