//! Waypoints on a real cluster: a Gateway becomes one, and what names it is reached through it or not at all.

use std::sync::LazyLock;

use lab::Cluster;
use serde_json::Value;

use crate::command_line::{airglow, said};
use crate::mesh::{AMBIENT, meshed};
use crate::traffic::{Client, Traffic};
use crate::{Namespace, PATIENCE, eventually};

/// Whose address the server saw.
pub(crate) fn client(answer: &Value) -> String {
    let client = answer["client"].as_str().unwrap_or_default();
    client.rsplit_once(':').map_or(client, |(ip, _)| ip).to_owned()
}

/// Images and kinds of objects that waypoints need, on the cluster with the mesh.
pub(crate) fn with_waypoints() -> &'static Cluster {
    static PREPARED: LazyLock<()> = LazyLock::new(|| {
        let cluster = meshed();
        cluster.load_waypoint_image().expect("an image of what was built: cargo build -p waypoint");
        cluster.add_gateway_api().expect("the Gateway API's definitions");
    });
    LazyLock::force(&PREPARED);
    meshed()
}

#[test]
fn what_names_a_waypoint_is_reached_through_it_and_not_without_it() {
    let cluster = with_waypoints();
    let shop = Namespace::new(cluster, "guarded");
    shop.kubectl(&["label", "namespace", shop.name, &format!("{AMBIENT}=ambient")]);
    shop.deploy_web(2);
    shop.joined();
    let caller = &shop.pods()[0].0;
    shop.curl_until(caller, "http://web/", |answer| answer["name"].is_string());

    let timeout = PATIENCE.as_secs().to_string();
    let asked = ["waypoint", "apply", "-n", shop.name, "--enroll-namespace", "--timeout", &timeout];
    let applied = airglow(cluster, &asked);
    assert!(
        applied.status.success(),
        "{}\n{}",
        said(&applied),
        shop.kubectl(&["get", "gateways", "-o", "yaml"])
    );
    let pods = shop.all_pods();
    let waypoint = pods.iter().find(|pod| pod.name.starts_with("waypoint-")).expect("it runs");
    shop.curl_until(caller, "http://web/", |answer| client(answer) == waypoint.ip);
    let bound = shop.get(&["service", "web"])["status"]["conditions"].to_string();
    assert!(bound.contains("WaypointAccepted"), "{bound}");
    let status = airglow(cluster, &["waypoint", "status", "-n", shop.name]);
    assert!(status.status.success() && said(&status).contains("Programmed"), "{}", said(&status));

    // It is named, so that it is not deleted unasked; and without it there is no way.
    let refused = airglow(cluster, &["waypoint", "delete", "-n", shop.name, "waypoint"]);
    assert!(!refused.status.success() && said(&refused).contains("namespace guarded"), "{}", said(&refused));
    let deleted = airglow(cluster, &["waypoint", "delete", "-n", shop.name, "waypoint", "--force"]);
    assert!(deleted.status.success(), "{}", said(&deleted));
    eventually("the service is refused without its waypoint", || match shop.ask(caller, "http://web/") {
        Ok(answer) => Err(answer.to_string()),
        Err(_) => Ok(()),
    });
    eventually("what was made goes with the Gateway", || {
        let left = shop.kubectl(&["get", "deployment,service,serviceaccount", "-o", "name"]);
        if left.contains("/waypoint") { Err(left) } else { Ok(()) }
    });
    shop.kubectl(&["label", "namespace", shop.name, "istio.io/use-waypoint-"]);
    // Straight on, now that nothing asks for more.
    shop.curl_until(caller, "http://web/", |answer| answer["name"].is_string());
}

/// Every request to `web` is answered as one for `/routed`.
fn route(namespace: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: to-web, namespace: {namespace}}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]
  rules:
  - filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: /routed}}}}}}]
    backendRefs: [{{name: web, port: 80}}]
"
    )
}

#[test]
fn a_waypoint_comes_with_the_first_route_and_goes_with_the_last_unnoticed() {
    let cluster = with_waypoints();
    let shop = Namespace::new(cluster, "by-need");
    shop.kubectl(&[
        "label",
        "namespace",
        shop.name,
        &format!("{AMBIENT}=ambient"),
        "airglow.dev/waypoint=auto",
    ]);
    shop.deploy_web(2);
    shop.joined();
    let calls = Client::calls("calls", "http", "web.by-need:80");
    let traffic = Traffic::start(&shop, "traffic", &cluster.node(0), vec![calls]);
    shop.joined();
    let caller = &shop.pods()[0].0;
    let gateways = || shop.kubectl(&["get", "gateways", "-o", "name"]);
    assert_eq!(gateways(), "", "nothing needs one yet");

    traffic.undisturbed("a waypoint that comes", || {
        cluster.apply(&route(shop.name)).expect("a route");
        shop.curl_until(caller, "http://web/", |answer| answer["path"] == "/routed");
        traffic.progress();
    });
    let words = ["trace", "-n", shop.name, "svc/web", "--json", "--count", "1", "--within", "120"];
    let traced = airglow(cluster, &words);
    let request: Value =
        serde_json::from_slice(&traced.stdout).unwrap_or_else(|error| panic!("{error} in {}", said(&traced)));
    assert_eq!(request["rule"], "HTTPRoute/by-need/to-web/0", "{request}");
    assert_eq!(request["source"]["namespace"], shop.name, "{request}");

    let said_of = |what: [&str; 2]| shop.get(&what)["status"].to_string();
    let gateway = said_of(["gateway", "waypoint-auto"]);
    assert!(gateway.contains("guards services that routes and policies name: web"), "{gateway}");
    let bound = said_of(["service", "web"]);
    assert!(bound.contains("WaypointAccepted"), "{bound}");

    traffic.undisturbed("a waypoint that is replaced, grows and shrinks", || {
        let rolled_out = |replicas: u64| {
            let annotation = format!("airglow.dev/replicas={replicas}");
            shop.kubectl(&["annotate", "--overwrite", "gateway", "waypoint-auto", &annotation]);
            eventually("as many pods as are asked for", || {
                let status = &shop.get(&["deployment", "waypoint-auto"])["status"];
                let is_so = ["replicas", "updatedReplicas", "readyReplicas"]
                    .iter()
                    .all(|field| status[*field] == replicas);
                if is_so { Ok(()) } else { Err(status.clone()) }
            });
        };
        shop.kubectl(&["rollout", "restart", "deployment/waypoint-auto"]);
        rolled_out(2);
        rolled_out(1);
        traffic.progress();
    });

    traffic.undisturbed("a waypoint that goes", || {
        shop.kubectl(&["delete", "httproute", "to-web"]);
        shop.curl_until(caller, "http://web/", |answer| answer["path"] == "/");
        eventually("the waypoint goes", || {
            let left = gateways() + &shop.kubectl(&["get", "pods", "-o", "name"]);
            if left.contains("waypoint") { Err(left) } else { Ok(()) }
        });
    });
    assert_eq!(traffic.account("calls")["failed"], 0);
    traffic.end();
}
