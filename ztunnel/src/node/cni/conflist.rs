//! Network configurations: which one container runtimes take, and the same with our plugin as the last one.
//!
//! Pure. What we do not know is kept as it is.

use serde_json::{Map, Value, json};

use super::PLUGIN;

/// What the names of our configurations end with. It sorts before the names that they are made from.
const OURS: &str = ".airglow.conflist";

/// Why a configuration can't be chained to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// It is not JSON.
    #[error("not JSON ({0}); if it is being written, it is looked at again")]
    NotJson(String),
    /// It is no configuration.
    #[error("no network configuration: {0}")]
    NotNetwork(&'static str),
    /// Its version knows no chains with results.
    #[error("cniVersion {0:?} is too old: chaining needs 0.3.0")]
    TooOld(String),
}

/// Whether an installer made the file of this name.
pub(super) fn is_ours(name: &str) -> bool {
    name.ends_with(OURS) && !name.starts_with('.')
}

/// The file that container runtimes would take if ours were not there: the first one by name.
pub(super) fn base(names: &[String]) -> Option<&str> {
    let is_configuration = |name: &str| {
        [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)) && !name.starts_with('.')
    };
    names.iter().map(String::as_str).filter(|name| is_configuration(name) && !is_ours(name)).min()
}

/// The name of ours for the one of this name: the next one before it.
pub(super) fn chained_name(base: &str) -> String {
    let stem = base.rsplit_once('.').map_or(base, |(stem, _)| stem);
    format!("{stem}{OURS}")
}

/// The configuration, with `entry` as its last plugin; one of a single plugin becomes a list.
pub(super) fn chained(text: &[u8], entry: &Value) -> Result<String, Unusable> {
    let config: Value = serde_json::from_slice(text).map_err(|error| Unusable::NotJson(error.to_string()))?;
    let Value::Object(config) = config else { return Err(Unusable::NotNetwork("it is no object")) };
    let mut list = as_list(config)?;
    match list.get("cniVersion").and_then(Value::as_str) {
        Some(version) if !is_old(version) => {}
        version => return Err(Unusable::TooOld(version.unwrap_or_default().to_owned())),
    }
    let Some(Value::Array(plugins)) = list.get_mut("plugins") else {
        return Err(Unusable::NotNetwork("`plugins` is no list"));
    };
    plugins.retain(|plugin| plugin["type"] != PLUGIN);
    if plugins.is_empty() {
        return Err(Unusable::NotNetwork("it has no plugin that makes a network"));
    }
    plugins.push(entry.clone());
    let mut text = format!("{:#}", Value::Object(list));
    text.push('\n');
    Ok(text)
}

fn as_list(config: Map<String, Value>) -> Result<Map<String, Value>, Unusable> {
    if config.contains_key("plugins") {
        return Ok(config);
    }
    if !config.contains_key("type") {
        return Err(Unusable::NotNetwork("it has neither `plugins` nor `type`"));
    }
    let shared = ["cniVersion", "name"].into_iter();
    let mut list: Map<String, Value> =
        shared.filter_map(|key| Some((key.to_owned(), config.get(key)?.clone()))).collect();
    list.insert("plugins".to_owned(), json!([config]));
    Ok(list)
}

fn is_old(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (major, minor) < (0, 3)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> Value {
        json!({"type": PLUGIN, "runDir": "/run/airglow"})
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_first_by_name_counts_and_ours_comes_before_it() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let listed =
            names(&["99-loopback.conf", "10-a.conflist", "README", ".10-a.draft", "10-a.airglow.conflist"]);
        assert_eq!(base(&listed), Some("10-a.conflist"));
        assert_eq!(base(&names(&["10-a.airglow.conflist", "x.cilium_bak"])), None);
        for base in ["10-a.conflist", "10-a.conf", "10-a.json", "10-a.b.conflist", "a.conf"] {
            let ours = chained_name(base);
            assert!(ours.as_str() < base && is_ours(&ours), "{ours} {base}");
        }
        assert!(!is_ours("10-a.conflist"));
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let conf =
            br#"{"cniVersion":"0.3.1","name":"pods","type":"bridge","ipam":{"type":"host-local"},"x":1}"#;
        let list = parsed(&chained(conf, &entry()).unwrap());
        assert_eq!((&list["cniVersion"], &list["name"]), (&json!("0.3.1"), &json!("pods")));
        assert_eq!(list["plugins"][0]["ipam"]["type"], "host-local");
        assert_eq!(list["plugins"][0]["x"], 1);
        assert_eq!(list["plugins"][1], entry());
    }

    #[test]
    fn what_can_not_be_chained_says_why() {
        let check = |text: &str, expected: &str| {
            let error = chained(text.as_bytes(), &entry()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("{", "not JSON");
        check("[]", "no object");
        check("{}", "neither");
        check(r#"{"cniVersion":"1.0.0","plugins":7}"#, "no list");
        check(r#"{"cniVersion":"1.0.0","plugins":[]}"#, "no plugin that makes");
        check(r#"{"cniVersion":"1.0.0","plugins":[{"type":"ztunnel-cni"}]}"#, "no plugin that makes");
        check(r#"{"cniVersion":"0.2.0","plugins":[{"type":"ptp"}]}"#, "too old");
        check(r#"{"type":"ptp"}"#, "too old");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-zA-Z0-9 /\\\\\"]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,6}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    fn any_plugin() -> impl Strategy<Value = Value> {
        (prop_oneof![Just("ptp"), Just("portmap"), Just(PLUGIN)], any_json()).prop_map(|(kind, more)| {
            let mut plugin = json!({"type": kind});
            plugin["zz-more"] = more;
            plugin
        })
    }

    proptest! {
        #[test]
        fn all_that_others_wrote_is_kept_and_ours_is_last_once(
            plugins in prop::collection::vec(any_plugin(), 1..5),
            more in any_json(),
        ) {
            let before = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins, "zz-more": more});
            let theirs: Vec<Value> = plugins.into_iter().filter(|plugin| plugin["type"] != PLUGIN).collect();
            let text = match chained(before.to_string().as_bytes(), &entry()) {
                Ok(text) => text,
                Err(error) => {
                    prop_assert!(theirs.is_empty(), "{error}");
                    return Ok(());
                }
            };
            let mut after = parsed(&text);
            let Some(Value::Array(list)) = after.get_mut("plugins").map(Value::take) else { panic!("{after}") };
            prop_assert_eq!(list.last(), Some(&entry()));
            prop_assert_eq!(&list[..list.len() - 1], &theirs[..]);
            prop_assert_eq!(&after["zz-more"], &before["zz-more"]);
            prop_assert_eq!(chained(text.as_bytes(), &entry()).unwrap(), text, "again changes nothing");
        }
    }
}
