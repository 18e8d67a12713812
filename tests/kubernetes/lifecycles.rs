//! Pods of the mesh come and go as those who made them have it: Jobs, StatefulSets, rolling Deployments, many at once.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use lab::{APP_IMAGE, Watch};
use serde_json::Value;

use crate::mesh::{AMBIENT, admin, failures, meshed, pod, service, strict};
use crate::{Namespace, PATIENCE, eventually, shared};

/// Addresses of services, in the range that is never given out by itself.
const FIRST: &str = "10.96.0.102";
const ROLLING: &str = "10.96.0.103";
const MINUTELY: &str = "10.96.0.104";

/// How many pods a Deployment grows to: half of what kubelet allows, so that others have room.
const MANY: usize = 60;

/// A namespace that is in the mesh from its beginning.
fn namespace(name: &'static str) -> Namespace<'static> {
    let namespace = Namespace::new(meshed(), name);
    namespace.kubectl(&["label", "namespace", name, &format!("{AMBIENT}=ambient")]);
    namespace
}

/// A CronJob of the namespace `minutely`, and what may not be read of its Jobs. It begins with the mesh: by the time that the test of
/// it is run, its time has come.
static SCHEDULE: LazyLock<Watch> = LazyLock::new(|| {
    let canary = shared().wire().watch("minutely-canary");
    let manifests = [
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: minutely, labels: {{{AMBIENT}: ambient}}}}\n\
             ---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: batch, namespace: minutely}}\n"
        ),
        strict("minutely"),
        service("minutely", "server", MINUTELY, ""),
        pod("minutely", "server", "n2", &["http", "--name", "server"]),
        cron_job("minutely", "minutely", "* * * * *", &asks_at_once(MINUTELY, "minutely-canary")),
    ];
    shared().apply(&manifests.concat()).expect("valid manifests");
    canary
});

/// Begins what takes its time by the clock.
pub(crate) fn begin_schedule() {
    LazyLock::force(&SCHEDULE);
}

fn cron_job(namespace: &str, name: &str, schedule: &str, template: &str) -> String {
    format!(
        "---\napiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{schedule: \"{schedule}\", jobTemplate: {{spec: {{backoffLimit: 0, template: {template}}}}}}}\n"
    )
}

/// A pod's template that asks a server once at its very beginning, and once more when that was answered.
fn asks_at_once(server: &str, canary: &str) -> String {
    let ask = |part: &str| {
        let url = format!("http://{server}/{canary}-{part}");
        format!("[{{name: {part}, image: {APP_IMAGE}, command: [curl, -sSf, -m, \"20\", \"{url}\"]}}]")
    };
    format!(
        "{{spec: {{serviceAccountName: batch, nodeSelector: {{kubernetes.io/hostname: n1}}, restartPolicy: Never, \
         initContainers: {}, containers: {}}}}}",
        ask("init"),
        ask("main")
    )
}

/// What the nodes' ztunnels know of pods of a namespace: those of their own node, and those that the controller told of.
fn remembered(namespace: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for node in shared().nodes() {
        let own = admin(&node, "/pods");
        let own = own.as_array().expect("ztunnel answers").iter().filter_map(|pod| pod["pod"].as_str());
        names.extend(own.filter_map(|pod| pod.strip_prefix(namespace)?.strip_prefix('/')).map(str::to_owned));
        let dump = admin(&node, "/config_dump");
        let told = dump["workloads"].as_array().expect("ztunnel answers").iter();
        let told = told.filter(|workload| workload["namespace"] == namespace);
        names.extend(told.filter_map(|workload| workload["name"].as_str()).map(str::to_owned));
    }
    names
}

fn remembers_only(namespace: &Namespace<'_>) {
    eventually(&format!("pods of {} that are gone are forgotten", namespace.name), || {
        let alive: BTreeSet<_> = namespace.all_pods().into_iter().map(|pod| pod.name).collect();
        match remembered(namespace.name) {
            known if known == alive => Ok(()),
            known => Err(format!("{known:?}, not {alive:?}")),
        }
    });
}

#[test]
fn a_pod_is_in_the_mesh_with_its_first_packet_and_jobs_are_forgotten() {
    let first = namespace("first");
    let canary = meshed().wire().watch("first-canary");
    let manifests = [
        strict("first"),
        "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: batch, namespace: first}\n".to_owned(),
        service("first", "server", FIRST, ""),
        pod("first", "server", "n2", &["http", "--name", "server", "--log"]),
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: first}}\n\
             spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 8080}}]}}\n\
             ---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db, namespace: first}}\n\
             spec:\n  serviceName: db\n  replicas: 2\n  podManagementPolicy: Parallel\n  selector: {{matchLabels: {{app: db}}}}\n  \
             template:\n    metadata: {{labels: {{app: db}}}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      \
             containers:\n      - name: db\n        image: {APP_IMAGE}\n        args: [http, --name, $(POD)]\n        \
             env: [{{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]\n"
        ),
    ];
    meshed().apply(&manifests.concat()).expect("valid manifests");
    meshed().rolled_out("first", "statefulset/db", PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    first.ready();
    first.joined();
    let jobs = [
        format!(
            "---\napiVersion: batch/v1\nkind: Job\nmetadata: {{name: once, namespace: first}}\n\
             spec: {{backoffLimit: 0, template: {}}}\n",
            asks_at_once(FIRST, "first-canary-job")
        ),
        cron_job("first", "nightly", "0 3 * * *", &asks_at_once(FIRST, "first-canary-cron")),
    ];
    meshed().apply(&jobs.concat()).expect("valid manifests");
    first.kubectl(&["create", "job", "tonight", "--from=cronjob/nightly"]);
    for job in ["once", "tonight"] {
        eventually(&format!("{job} is complete"), || {
            let status = &first.get(&["job", job])["status"];
            assert!(
                status["failed"].is_null(),
                "{job}: {status} {}",
                first.kubectl(&["logs", &format!("job/{job}"), "--all-containers"])
            );
            if status["succeeded"] == 1 { Ok(()) } else { Err(status.clone()) }
        });
    }
    remembers_only(&first);

    // Each pod of a StatefulSet by its own name, and any of them by that of the service.
    for name in ["db-0", "db-1"] {
        let url = format!("http://{name}.db.first.svc.cluster.local:8080/first-canary-{name}");
        let answer = first.curl_until("db-0", &url, |answer| answer["name"] == name);
        assert_eq!(answer["name"], name);
    }
    first.curl_until("db-0", "http://db:8080/first-canary-any", |answer| answer["name"].is_string());
    assert_eq!(canary.count().expect("a complete capture"), 0, "nothing of all this could be read");
    // It asked the server, and got there without a second try.
    let seen = first.kubectl(&["logs", "server"]).lines().filter(|line| line.contains("\"client\"")).count();
    assert_eq!(seen, 4, "two Jobs, each with its first process and its second");
}

#[test]
fn a_cron_job_asks_within_the_mesh_when_its_time_comes_and_is_forgotten() {
    let minutely = Namespace { cluster: meshed(), name: "minutely" };
    eventually("a Job that the schedule made has succeeded", || {
        let status = &minutely.get(&["cronjob", "minutely"])["status"];
        if status["lastSuccessfulTime"].is_string() { Ok(()) } else { Err(status.clone()) }
    });
    remembers_only(&minutely);
    assert_eq!(SCHEDULE.count().expect("a complete capture"), 0, "nothing of it could be read");
}

#[test]
fn a_deployment_rolls_under_load_without_a_failed_request() {
    let rolling = namespace("rolling");
    let manifest = format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, namespace: rolling}}\n\
         spec:\n  replicas: 2\n  strategy: {{rollingUpdate: {{maxSurge: 1, maxUnavailable: 0}}}}\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 4\n      containers:\n      - name: web\n        image: {APP_IMAGE}\n        \
         args: [http, --name, $(POD)]\n        \
         env: [{{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]\n        \
         readinessProbe: {{httpGet: {{path: /ready, port: 8080}}, periodSeconds: 1}}\n"
    );
    meshed().apply(&(service("rolling", "web", ROLLING, "") + &manifest)).expect("valid manifests");
    rolling.rolled_out();
    rolling.joined();
    let to = format!("{ROLLING}:80");
    let load = [
        "load",
        "--protocol",
        "http",
        "--mode",
        "new",
        "--to",
        &to,
        "--connections",
        "4",
        "--interval-ms",
        "20",
    ];
    meshed().apply(&pod("rolling", "client", "n1", &load)).expect("a pod");
    rolling.ready();
    rolling.says("client", "working");
    let before: BTreeSet<_> = rolling.pods().into_iter().map(|(name, ..)| name).collect();
    rolling.kubectl(&["rollout", "restart", "deployment/web"]);
    rolling.rolled_out();
    eventually("the pods of before are gone", || {
        let now: BTreeSet<_> = rolling.pods().into_iter().map(|(name, ..)| name).collect();
        if now.is_disjoint(&before) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let report = rolling.report("client");
    assert_eq!(report["failed"], 0, "{report}\n{}", failures("rolling"));
    let answered: BTreeSet<_> = report["answered_by"].as_object().expect("a table").keys().cloned().collect();
    let after = rolling.pods().into_iter().map(|(name, ..)| name).collect();
    assert!(answered.is_superset(&before) && answered.is_superset(&after), "{report}");
}

#[test]
fn a_deployment_grows_to_sixty_pods_and_back() {
    let crowd = namespace("crowd");
    let manifest = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, namespace: crowd}}\n\
         spec:\n  replicas: 2\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    \
         metadata: {{labels: {{app: web}}}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      \
         containers: [{{name: web, image: {APP_IMAGE}, args: [echo]}}]\n"
    );
    meshed().apply(&manifest).expect("valid manifests");
    for replicas in [2, MANY, 2] {
        crowd.kubectl(&["scale", "deployment/web", &format!("--replicas={replicas}")]);
        crowd.rolled_out();
        eventually(&format!("{replicas} pods are enrolled and heard of"), || {
            let alive: BTreeSet<_> = crowd.all_pods().into_iter().map(|pod| pod.name).collect();
            let (enrolled, told) = (enrolled("crowd"), tunnelled("crowd"));
            match alive.len() == replicas && enrolled == alive && told.iter().all(|told| *told == alive) {
                true => Ok(()),
                false => Err(format!(
                    "{} enrolled, {:?} heard of, {} alive",
                    enrolled.len(),
                    told.iter().map(BTreeSet::len),
                    alive.len()
                )),
            }
        });
    }
    remembers_only(&crowd);
}

/// Pods of a namespace that are enrolled, on whichever node.
fn enrolled(namespace: &str) -> BTreeSet<String> {
    let listed: Vec<Value> = shared().nodes().map(|node| admin(&node, "/pods")).collect();
    let all = listed.iter().filter_map(Value::as_array).flatten().filter(|pod| pod["state"] == "enrolled");
    let names = all.filter_map(|pod| pod["pod"].as_str()?.strip_prefix(namespace)?.strip_prefix('/'));
    names.map(str::to_owned).collect()
}

/// Pods of a namespace that each node uses tunnels for.
fn tunnelled(namespace: &str) -> Vec<BTreeSet<String>> {
    let of = |dump: Value| {
        let all = dump["workloads"].as_array().into_iter().flatten();
        let tunnelled = all.filter(|told| told["namespace"] == namespace && told["protocol"] == "HBONE");
        tunnelled.filter_map(|told| told["name"].as_str()).map(str::to_owned).collect()
    };
    shared().nodes().map(|node| of(admin(&node, "/config_dump"))).collect()
}
