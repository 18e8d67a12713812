//! Envoy in the waypoint's place: its configuration, with what ours does by routes said in its words.
//!
//! For HBONE a TLS listener that takes CONNECT leads to an internal listener with the router, and that to internal listeners that
//! tunnel out, as Istio's waypoints are built.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::certificates::{CHAIN, KEY, ROOTS};
use super::ground::{Origins, Scale};
use super::load::message::{RULE, SECRET, WEIGHTS};
use super::load::origin::{HBONE_PORT, HTTP1_PORT, HTTP2_PORT};
use super::manifests::{HTTP_PORT, HTTP2_SERVICE_PORT, ROUTED_PREFIX, SHARES, other_ip, other_path};

/// Where it listens for plain HTTP/1.1 and HTTP/2.
pub(crate) const PLAIN_HTTP1: u16 = 9001;
pub(crate) const PLAIN_HTTP2: u16 = 9002;
/// Where it says whether it is ready.
pub(crate) const ADMIN: u16 = 9901;

const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// The configuration of one at `ip`. `certificate` is the directory of its certificate.
pub(crate) fn bootstrap(ip: IpAddr, certificate: &Path, origins: &Origins, scale: Scale) -> Value {
    let mut clusters = vec![internal("router-1", "router-1", false), internal("router-2", "router-2", false)];
    let mut listeners = vec![
        on_port("plain-1", (ip, PLAIN_HTTP1), router("HTTP1", "plain-1", 0), None),
        on_port("plain-2", (ip, PLAIN_HTTP2), router("HTTP2", "plain-2", 0), None),
        on_port("tunnels", (ip, HBONE_PORT), connect_manager(), Some(downstream_tls(certificate))),
        inside("router-1", router("HTTP1", "tunnelled-1", scale.routes)),
        inside("router-2", router("HTTP2", "tunnelled-2", 0)),
    ];
    for (index, (plain, tunnelled)) in origins.plain.iter().zip(&origins.tunnelled).enumerate() {
        for (protocol, port) in [(1, HTTP1_PORT), (2, HTTP2_PORT)] {
            let endpoints = endpoints(&format!("plain-{protocol}-{index}"), [*plain], port);
            clusters.push(with_protocol(protocol, endpoints));
            let out = format!("out-{protocol}-{index}");
            clusters.push(with_protocol(
                protocol,
                internal(&format!("tunnelled-{protocol}-{index}"), &out, true),
            ));
            listeners.push(inside(&out, tunnel_out(&format!("hbone-{index}"), (*tunnelled, port))));
        }
        let mut hbone = endpoints(&format!("hbone-{index}"), [*tunnelled], HBONE_PORT);
        hbone["transport_socket"] = upstream_tls(certificate);
        clusters.push(with_protocol(2, hbone));
    }
    if scale.endpoints > 0 {
        let others = (0..scale.endpoints).map(other_ip);
        clusters.push(endpoints("crowd", others, HTTP1_PORT));
    }
    json!({
        "admin": {"address": address(ip, ADMIN)},
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {"@type": format!("{TYPES}.bootstrap.internal_listener.v3.InternalListener")},
        }],
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn address(ip: IpAddr, port: u16) -> Value {
    json!({"socket_address": {"address": ip.to_string(), "port_value": port}})
}

fn on_port(name: &str, (ip, port): (IpAddr, u16), filter: Value, tls: Option<Value>) -> Value {
    let mut chain = json!({"filters": [filter]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({"name": name, "address": address(ip, port), "filter_chains": [chain]})
}

fn inside(name: &str, filter: Value) -> Value {
    json!({"name": name, "internal_listener": {}, "filter_chains": [{"filters": [filter]}]})
}

/// What takes tunnels apart: one virtual host per port that is asked for.
fn connect_manager() -> Value {
    let host = |port: u16, cluster: &str| {
        json!({
            "name": cluster,
            "domains": [format!("*:{port}")],
            "routes": [{
                "match": {"connect_matcher": {}},
                "route": {"cluster": cluster, "timeout": "0s",
                    "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
            }],
        })
    };
    let hosts = [host(HTTP_PORT, "router-1"), host(HTTP2_SERVICE_PORT, "router-2")];
    manager(
        "HTTP2",
        "connect",
        json!(hosts),
        json!({
            "http2_protocol_options": {"allow_connect": true},
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        }),
    )
}

/// The same routes as ours have: see `ground`.
fn router(codec: &str, clusters: &str, others: usize) -> Value {
    let weighted: Vec<_> = SHARES
        .iter()
        .enumerate()
        .map(|(index, weight)| json!({"name": format!("{clusters}-{index}"), "weight": weight}))
        .collect();
    let direct = |index: usize| json!({"cluster": format!("{clusters}-{index}")});
    let others = (0..others).map(|number| json!({"match": {"path": other_path(number)}, "route": direct(0)}));
    let mut routes: Vec<_> = others.collect();
    routes.extend([
        json!({"match": {"prefix": "/", "headers": [{"name": "x-canary", "string_match": {"exact": "please"}}]}, "route": direct(1)}),
        json!({"match": {"path_separated_prefix": "/old"}, "redirect": {"host_redirect": "new.shop", "prefix_rewrite": "/new"}}),
        json!({
            "match": {"path_separated_prefix": ROUTED_PREFIX},
            "request_headers_to_add": [{"header": {"key": RULE.0, "value": RULE.1}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
            "request_headers_to_remove": [SECRET],
            "response_headers_to_add": [{"header": {"key": WEIGHTS.0, "value": WEIGHTS.1}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
            "route": {
                "weighted_clusters": {"clusters": weighted},
                "timeout": "10s",
                "retry_policy": {"retry_on": "retriable-status-codes,connect-failure,reset", "retriable_status_codes": [503], "num_retries": 2, "per_try_timeout": "5s"},
            },
        }),
        json!({"match": {"prefix": "/"}, "route": direct(0)}),
    ]);
    manager(codec, clusters, json!([{"name": "all", "domains": ["*"], "routes": routes}]), json!({}))
}

fn manager(codec: &str, name: &str, hosts: Value, more: Value) -> Value {
    let mut config = json!({
        "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "codec_type": codec,
        "access_log": [{"name": "file", "typed_config": {
            "@type": format!("{TYPES}.access_loggers.file.v3.FileAccessLog"), "path": "/dev/null",
        }}],
        "route_config": {"name": name, "virtual_hosts": hosts},
        "http_filters": [{"name": "router", "typed_config": {"@type": format!("{TYPES}.filters.http.router.v3.Router")}}],
    });
    let more = more.as_object().into_iter().flatten();
    more.for_each(|(key, value)| config[key.as_str()] = value.clone());
    json!({"name": "manager", "typed_config": config})
}

fn tunnel_out(cluster: &str, (to, port): (IpAddr, u16)) -> Value {
    json!({"name": "tunnel", "typed_config": {
        "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": cluster,
        "cluster": cluster,
        "tunneling_config": {"hostname": format!("{to}:{port}")},
    }})
}

fn endpoints(name: &str, ips: impl IntoIterator<Item = IpAddr>, port: u16) -> Value {
    let at = |ip: IpAddr| json!({"endpoint": {"address": address(ip, port)}});
    let all: Vec<_> = ips.into_iter().map(at).collect();
    json!({
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": all}]},
    })
}

/// A cluster that leads to an internal listener; each gets connections of its own.
fn internal(name: &str, listener: &str, plain: bool) -> Value {
    let address = json!({"envoy_internal_address": {"server_listener_name": listener}});
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
    });
    if !plain {
        let raw = json!({"name": "raw", "typed_config": {"@type": format!("{TYPES}.transport_sockets.raw_buffer.v3.RawBuffer")}});
        cluster["transport_socket"] = json!({"name": "internal", "typed_config": {
            "@type": format!("{TYPES}.transport_sockets.internal_upstream.v3.InternalUpstreamTransport"),
            "transport_socket": raw,
        }});
    }
    cluster
}

fn with_protocol(protocol: u8, mut cluster: Value) -> Value {
    let options = if protocol == 2 { "http2_protocol_options" } else { "http_protocol_options" };
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": {options: {}},
        },
    });
    cluster
}

fn downstream_tls(certificate: &Path) -> Value {
    json!({"name": "tls", "typed_config": {
        "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": tls(certificate),
    }})
}

fn upstream_tls(certificate: &Path) -> Value {
    json!({"name": "tls", "typed_config": {
        "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "common_tls_context": tls(certificate),
    }})
}

fn tls(certificate: &Path) -> Value {
    let file = |name: &str| json!({"filename": certificate.join(name)});
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file(CHAIN), "private_key": file(KEY)}],
        "validation_context": {"trusted_ca": file(ROOTS)},
    })
}
