//! Brings the kernel to what is wanted, from kernel facts, by the plan; call it on every change and every few seconds.
//! One pod's failure does not hold up another. It remembers nothing between calls.

use std::io;
use std::os::fd::BorrowedFd;

use socket2::SockRef;

use crate::node::Node;
use crate::observe::Observed;
use crate::plan::{Action, Step, Want, Wanted, plan};
use crate::pod::{EnrolError, Sandbox, kernel};

/// What one pod should be.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The pod.
    pub sandbox: Sandbox,
    /// Captured, or not.
    pub enrolled: bool,
    /// For a pod that is not to be captured: whether its captured connections have ended, so that the rest may go.
    pub drained: bool,
}

/// Who owns the listeners of pods.
pub trait Listeners {
    /// The pod's listeners in the order of [`crate::Kind::ALL`], made by [`crate::socket::listen`] if there are none.
    /// Called for every pod that should be enrolled, each time.
    ///
    /// # Errors
    /// The pod is then reported as failed, and not enrolled.
    fn listeners(&mut self, sandbox: &Sandbox) -> io::Result<[BorrowedFd<'_>; 4]>;
}

/// What a pod is now, proven from kernel facts.
#[derive(Debug)]
pub struct Outcome {
    /// The pod.
    pub uid: String,
    /// Its state.
    pub state: State,
}

/// The state of one pod.
#[derive(Debug)]
pub enum State {
    /// Captured, every fact checked after the last change.
    Enrolled,
    /// New connections are direct; captured ones have not ended yet.
    Draining,
    /// Nothing of ours is left.
    Released,
    /// Not as wanted. A pod that was captured before still is.
    Failed(EnrolError),
}

/// Does what is due, and says what each wished pod is now. Pods not wished for are left as they are, except that
/// what was pinned for namespaces that are gone is cleared.
///
/// # Errors
/// When the kernel's facts cannot be read at all.
pub fn reconcile(
    node: &Node,
    wishes: &[Wish],
    listeners: &mut dyn Listeners,
) -> Result<Vec<Outcome>, EnrolError> {
    let mut failures: Vec<(String, EnrolError)> = Vec::new();
    let mut wanted = Vec::new();
    for wish in wishes {
        match wanted_of(wish, listeners) {
            Ok(one) => wanted.push(one),
            Err(error) => failures.push((wish.sandbox.uid.clone(), error)),
        }
    }
    let observe = || node.observe(wishes.iter().map(|wish| &wish.sandbox));
    let mut observed = observe()?;
    // A pod whose listeners failed is mentioned by nobody, and left as it is.
    let actions = plan(&wanted, &observed);
    for action in &actions {
        if failures.iter().any(|(uid, _)| *uid == action.uid) {
            continue;
        }
        let wish = wishes.iter().find(|wish| wish.sandbox.uid == action.uid);
        tracing::debug!(uid = %action.uid, step = ?action.step, "reconciling");
        if let Err(error) = execute(node, action, wish, listeners) {
            failures.push((action.uid.clone(), error));
        }
    }
    if !actions.is_empty() {
        observed = observe()?;
    }
    Ok(wishes.iter().map(|wish| outcome(wish, &wanted, &observed, &mut failures)).collect())
}

fn wanted_of(wish: &Wish, listeners: &mut dyn Listeners) -> Result<Wanted, EnrolError> {
    let Sandbox { uid, netns, addresses } = &wish.sandbox;
    let want = if wish.enrolled {
        let fds = listeners.listeners(&wish.sandbox).map_err(kernel(uid, "open its listeners"))?;
        let mut cookies = [0; 4];
        for (cookie, fd) in cookies.iter_mut().zip(fds) {
            *cookie = SockRef::from(&fd).cookie().map_err(kernel(uid, "name its listeners"))?;
        }
        Want::Enrolled { listeners: cookies }
    } else {
        Want::Released { drained: wish.drained }
    };
    Ok(Wanted { uid: uid.clone(), netns_cookie: netns.cookie(), addresses: addresses.clone(), want })
}

fn execute(
    node: &Node,
    action: &Action,
    wish: Option<&Wish>,
    listeners: &mut dyn Listeners,
) -> Result<(), EnrolError> {
    let uid = action.uid.as_str();
    let Some(Wish { sandbox, .. }) = wish else {
        // Only what is left of a dead namespace is touched without having been wished for.
        return if action.step == Step::Forget { node.forget(uid) } else { Ok(()) };
    };
    match action.step {
        Step::Forget => node.forget(uid),
        Step::Prepare => node.prepare(sandbox),
        Step::Offer => {
            let fds = listeners.listeners(sandbox).map_err(kernel(uid, "open its listeners"))?;
            node.offer(sandbox, fds)
        }
        Step::MapAddresses => node.map_addresses(sandbox),
        Step::Link => node.link(sandbox),
        Step::Enter => node.enter(sandbox),
        Step::CaptureDns => node.capture_dns(sandbox),
        Step::ReleaseDns => node.release_dns(sandbox),
        Step::Withdraw => node.withdraw(uid),
        Step::Remove => node.remove(sandbox),
    }
}

fn outcome(
    wish: &Wish,
    wanted: &[Wanted],
    observed: &[Observed],
    failures: &mut Vec<(String, EnrolError)>,
) -> Outcome {
    let uid = wish.sandbox.uid.clone();
    if let Some(index) = failures.iter().position(|(failed, _)| *failed == uid) {
        let (_, error) = failures.swap_remove(index);
        return Outcome { uid, state: State::Failed(error) };
    }
    let of_pod: Vec<Wanted> = wanted.iter().filter(|wanted| wanted.uid == uid).cloned().collect();
    let found = observed.iter().find(|observed| observed.uid == uid);
    let left: Vec<Action> = plan(&of_pod, observed).into_iter().filter(|action| action.uid == uid).collect();
    let state = match (wish.enrolled, found) {
        (true, _) if left.is_empty() => State::Enrolled,
        (true, _) => State::Failed(unproven(&uid, &left)),
        (false, None) => State::Released,
        (false, Some(_)) => State::Draining,
    };
    Outcome { uid, state }
}

fn unproven(uid: &str, left: &[Action]) -> EnrolError {
    let steps: Vec<String> = left.iter().map(|action| format!("{:?}", action.step)).collect();
    let source = io::Error::other(format!("the kernel does not show the effect of {}", steps.join(", ")));
    kernel(uid, "prove that it is enrolled")(source)
}
