//! Resources as discovery names, versions and holds them. Owns no meaning: a body is opaque here.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use prost_types::Any;
use twox_hash::XxHash64;

/// What a resource costs on the wire beside its strings and its body: tags and lengths, generously.
const OVERHEAD_BYTES: usize = 64;

/// One discovery resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Unique within its type.
    pub name: String,
    /// Changes exactly when the body does.
    pub version: String,
    /// The message, with its type.
    pub body: Any,
    /// Other names that it may be asked for by.
    pub aliases: Vec<String>,
}

impl Resource {
    /// Makes a resource whose version is the hash of its body (xxHash64, in hexadecimal, as Istio's control plane does).
    /// Equal objects have equal versions in every process, so that a client keeps what it holds when the server restarts.
    #[must_use]
    pub fn new(name: String, aliases: Vec<String>, body: Any) -> Self {
        let version = format!("{:016x}", XxHash64::oneshot(0, &body.value));
        Self { name, version, body, aliases }
    }

    /// Stands for one that a client holds, and that is no longer what it should hold.
    pub(crate) fn outdated(name: String, version: String) -> Self {
        Self { name, version, body: Any::default(), aliases: Vec::new() }
    }

    /// About how many bytes it takes in a response.
    pub(crate) fn size(&self) -> usize {
        let aliases: usize = self.aliases.iter().map(|alias| alias.len() + 2).sum();
        let strings = self.name.len() + self.version.len() + self.body.type_url.len() + aliases;
        strings + self.body.value.len() + OVERHEAD_BYTES
    }

    /// Whether `key` is its name or one of its aliases.
    pub(crate) fn answers(&self, key: &str) -> bool {
        self.name == key || self.aliases.iter().any(|alias| alias == key)
    }
}

impl From<api::encode::Encoded> for Resource {
    fn from(api::encode::Encoded { name, aliases, body }: api::encode::Encoded) -> Self {
        Self::new(name, aliases, body)
    }
}

/// The resources of one type, by name. Cloning is O(1), and comparing two that were made from one another costs what
/// differs between them: this is what lets a server hold a hundred thousand resources for a thousand sessions.
#[derive(Clone, Debug, Default)]
pub struct Resources(OrdMap<String, Entry>);

/// A resource that is equal to another when name and version are.
#[derive(Clone, Debug)]
struct Entry(Arc<Resource>);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.version == other.0.version
    }
}

/// One step from one set of resources to another.
#[derive(Debug)]
pub(crate) enum Difference {
    Changed(Arc<Resource>),
    Removed(String),
}

impl Resources {
    /// Adds a resource, or replaces the one of its name. Keeps what it holds where that has the same version.
    pub fn insert(&mut self, resource: impl Into<Arc<Resource>>) {
        let entry = Entry(resource.into());
        if self.0.get(&entry.0.name) != Some(&entry) {
            self.0.insert(entry.0.name.clone(), entry);
        }
    }

    /// Takes out the resource of that name.
    pub fn remove(&mut self, name: &str) -> Option<Arc<Resource>> {
        self.0.remove(name).map(|entry| entry.0)
    }

    /// Makes the resource of that name, if there is one, differ from any other of its name.
    pub(crate) fn outdate(&mut self, name: &str) {
        if self.0.contains_key(name) {
            self.insert(Resource::outdated(name.to_owned(), String::new()));
        }
    }

    /// The resource of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.0.get(name).map(|entry| &entry.0)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.0.values().map(|entry| &entry.0)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What turns `self` into `target`, by name.
    pub(crate) fn diff<'a>(&'a self, target: &'a Self) -> impl Iterator<Item = Difference> + 'a {
        self.0.diff(&target.0).map(|item| match item {
            DiffItem::Add(_, new) | DiffItem::Update { new: (_, new), .. } => {
                Difference::Changed(Arc::clone(&new.0))
            }
            DiffItem::Remove(name, _) => Difference::Removed(name.clone()),
        })
    }
}

impl<R: Into<Arc<Resource>>> FromIterator<R> for Resources {
    fn from_iter<I: IntoIterator<Item = R>>(resources: I) -> Self {
        let mut all = Self::default();
        resources.into_iter().for_each(|resource| all.insert(resource));
        all
    }
}

impl<R: Into<Arc<Resource>>> Extend<R> for Resources {
    fn extend<I: IntoIterator<Item = R>>(&mut self, resources: I) {
        resources.into_iter().for_each(|resource| self.insert(resource));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str, value: u8) -> Resource {
        Resource::new(name.to_owned(), Vec::new(), Any { type_url: "t".to_owned(), value: vec![value] })
    }

    /// `+name` and `-name`, in order.
    fn steps(from: &Resources, to: &Resources) -> Vec<String> {
        let step = |difference| match difference {
            Difference::Changed(resource) => format!("+{}", resource.name),
            Difference::Removed(name) => format!("-{name}"),
        };
        from.diff(to).map(step).collect()
    }

    #[test]
    fn versions_follow_the_body() {
        assert_eq!(resource("a", 1).version, resource("b", 1).version);
        assert_ne!(resource("a", 1).version, resource("a", 2).version);
        // The published xxHash64 of nothing with seed 0.
        let empty = Resource::new(String::new(), Vec::new(), Any::default());
        assert_eq!(empty.version, "ef46db3751d8e999");
    }

    #[test]
    fn differences_are_by_version() {
        let old: Resources = [resource("a", 1), resource("b", 1), resource("c", 1)].into_iter().collect();
        let mut new = old.clone();
        assert!(steps(&old, &new).is_empty());
        new.remove("a");
        new.insert(resource("b", 1));
        new.insert(resource("c", 2));
        new.insert(resource("d", 1));
        assert_eq!(steps(&old, &new), ["-a", "+c", "+d"]);
        let unrelated: Resources = new.iter().cloned().collect();
        assert!(steps(&new, &unrelated).is_empty(), "equal without a common past");
    }
}
