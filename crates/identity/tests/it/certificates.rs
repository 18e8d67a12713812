//! The cache and its driver with a CA that can be told to fail, under virtual time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use identity::authority::{Authority, AuthorityConfig};
use identity::{
    BoxFuture, Ca, CaError, Certificate, CertificateError, Certificates, CertificatesConfig, Clock, Signed,
    SystemClock,
};
use model::identity::Identity;
use tempfile::TempDir;
use tokio::time::{Instant, advance, sleep, timeout};

use crate::support::{DAY, HOUR, MINUTE, epoch, handshake, shop};

const SECOND: Duration = Duration::from_secs(1);

/// A wall clock that moves with tokio's paused one.
#[derive(Debug)]
struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn now(&self) -> SystemTime {
        epoch() + self.0.elapsed()
    }
}

/// How the CA behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    Down,
    Hangs,
    NamesSomebodyElse,
    CertifiesAnotherKey,
    SendsNoRoots,
    SendsAnotherRoot,
}

struct MoodyCa {
    authority: Authority,
    other: Authority,
    mood: Mutex<Mood>,
    calls: AtomicUsize,
    flying: AtomicUsize,
    flying_max: AtomicUsize,
    _dir: TempDir,
}

impl MoodyCa {
    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn answer(&self, identity: &Identity, csr: String, validity: Duration) -> Result<Signed, CaError> {
        sleep(Duration::from_millis(20)).await;
        let mood = *self.mood.lock().unwrap();
        let sign =
            |csr: &str, identity: &Identity| self.authority.sign(csr, identity, Some(validity)).unwrap();
        let honest = sign(&csr, identity);
        Ok(match mood {
            Mood::Well => honest,
            Mood::Down => return Err(CaError::Unreachable("down".into())),
            Mood::Hangs => std::future::pending().await,
            Mood::NamesSomebodyElse => sign(&csr, &shop("somebody-else")),
            Mood::CertifiesAnotherKey => {
                sign(&identity::KeyRequest::for_workload(identity).unwrap().csr_pem, identity)
            }
            Mood::SendsNoRoots => Signed { roots: vec![vec![1, 2, 3].into()], ..honest },
            Mood::SendsAnotherRoot => {
                Signed { roots: self.other.sign(&csr, identity, None).unwrap().roots, ..honest }
            }
        })
    }
}

impl Ca for MoodyCa {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr: String,
        validity: Duration,
    ) -> BoxFuture<'a, Result<Signed, CaError>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let flying = Counted::new(&self.flying);
            self.flying_max.fetch_max(self.flying.load(Ordering::SeqCst), Ordering::SeqCst);
            let answer = self.answer(identity, csr, validity).await;
            drop(flying);
            answer
        })
    }
}

/// Counts a call for as long as it lives, also when it is dropped by a deadline.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A running cache, its CA, and the clock.
fn start() -> (Certificates, Arc<MoodyCa>) {
    let dir = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(VirtualClock(Instant::now()));
    let authority = |name: &str| {
        Authority::open_or_create(&dir.path().join(name), AuthorityConfig::new(name), clock.clone()).unwrap()
    };
    let ca = Arc::new(MoodyCa {
        authority: authority("cluster.local"),
        other: authority("other"),
        mood: Mutex::new(Mood::Well),
        calls: AtomicUsize::new(0),
        flying: AtomicUsize::new(0),
        flying_max: AtomicUsize::new(0),
        _dir: dir,
    });
    let config = CertificatesConfig { seed: 1, ..CertificatesConfig::default() };
    let (certificates, driver) = Certificates::new(ca.clone(), config, clock);
    tokio::spawn(driver.run());
    (certificates, ca)
}

fn serial(certificate: &Certificate) -> &str {
    &certificate.serial
}

#[tokio::test(start_paused = true)]
async fn a_wanted_certificate_is_there_before_the_first_connection() {
    let (certificates, ca) = start();
    certificates.want(shop("pay"));
    sleep(SECOND).await;
    let held = certificates.current(&shop("pay")).expect("fetched ahead of need");
    assert_eq!(held.identity, shop("pay"));
    assert_eq!(serial(&certificates.get(&shop("pay")).await.unwrap()), serial(&held));
    certificates.want(shop("pay"));
    sleep(MINUTE).await;
    assert_eq!(ca.calls(), 1, "wanting it again asks for nothing");
    handshake(held.client_config(), held.server_config()).unwrap();
    let state = &certificates.states()[0];
    assert_eq!((state.identity.clone(), state.failure.is_some()), (shop("pay"), false));
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_a_certificate_that_no_workload_wants() {
    let (certificates, ca) = start();
    let error = certificates.get(&shop("pay")).await.unwrap_err();
    assert!(matches!(error, CertificateError::NotWanted(_)), "{error}");
    assert_eq!(ca.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn many_callers_share_one_request() {
    let (certificates, ca) = start();
    certificates.want(shop("pay"));
    let callers = (0..50).map(|_| {
        let certificates = certificates.clone();
        tokio::spawn(async move { certificates.get(&shop("pay")).await.unwrap().serial.clone() })
    });
    let mut serials = Vec::new();
    for caller in callers.collect::<Vec<_>>() {
        serials.push(caller.await.unwrap());
    }
    serials.dedup();
    assert_eq!((serials.len(), ca.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn renewal_comes_at_half_life_and_nobody_notices() {
    let (certificates, ca) = start();
    certificates.want(shop("pay"));
    let first = certificates.get(&shop("pay")).await.unwrap();
    sleep(DAY.mul_f64(0.44)).await;
    assert_eq!(serial(&certificates.current(&shop("pay")).unwrap()), serial(&first));
    sleep(DAY.mul_f64(0.12)).await;
    let second = certificates.current(&shop("pay")).unwrap();
    assert_ne!(serial(&second), serial(&first));
    assert_eq!(ca.calls(), 2);
    handshake(first.client_config(), second.server_config()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_ca_the_last_good_certificate_works_until_it_expires() {
    let (certificates, ca) = start();
    certificates.want(shop("pay"));
    let first = certificates.get(&shop("pay")).await.unwrap();
    ca.be(Mood::Down);
    let began = Instant::now();
    let soon = || {
        let state = certificates.states().remove(0);
        (state.failure.is_some(), state.expires_soon(epoch() + began.elapsed()).is_some())
    };
    sleep(DAY.mul_f64(0.7)).await;
    assert_eq!(soon(), (true, false), "it fails, and there is time");
    sleep(DAY.mul_f64(0.3) - MINUTE).await;
    assert_eq!(serial(&certificates.get(&shop("pay")).await.unwrap()), serial(&first));
    assert_eq!(soon(), (true, true), "less than a quarter of its life is left");
    sleep(2 * MINUTE).await;
    assert!(certificates.current(&shop("pay")).is_none(), "expired");
    let started = Instant::now();
    let error = certificates.get(&shop("pay")).await.unwrap_err();
    assert!(matches!(error, CertificateError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    assert!(started.elapsed() <= 8 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_connection_finds_a_ca_that_came_back_within_a_second() {
    let (certificates, ca) = start();
    ca.be(Mood::Down);
    certificates.want(shop("pay"));
    sleep(HOUR).await;
    let before = ca.calls();
    let waiting = tokio::spawn({
        let certificates = certificates.clone();
        async move { certificates.get(&shop("pay")).await }
    });
    sleep(2500 * SECOND / 1000).await;
    let pressed = ca.calls() - before;
    assert!((2..=4).contains(&pressed), "pressed about once a second, not {pressed} times");
    ca.be(Mood::Well);
    let back = Instant::now();
    waiting.await.unwrap().unwrap();
    assert!(back.elapsed() < 1100 * SECOND / 1000, "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn once_nobody_waits_a_failing_ca_is_left_in_peace() {
    let (certificates, ca) = start();
    ca.be(Mood::Down);
    certificates.want(shop("pay"));
    sleep(HOUR).await;
    for _ in 0..3 {
        let gave_up = timeout(SECOND, certificates.get(&shop("pay"))).await;
        assert!(gave_up.is_err(), "the caller went away while waiting");
    }
    let before = ca.calls();
    sleep(10 * MINUTE).await;
    assert!(ca.calls() - before <= 21, "{} calls in ten minutes", ca.calls() - before);
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_hangs_is_given_up_and_asked_again() {
    let (certificates, ca) = start();
    ca.be(Mood::Hangs);
    certificates.want(shop("pay"));
    let waiting = tokio::spawn({
        let certificates = certificates.clone();
        async move { certificates.get(&shop("pay")).await }
    });
    sleep(SECOND).await;
    ca.be(Mood::Well);
    waiting.await.unwrap().expect("the first request hangs until its deadline, the second is answered");
    assert_eq!(ca.calls(), 2);

    ca.be(Mood::Hangs);
    certificates.want(shop("front"));
    let error = certificates.get(&shop("front")).await.unwrap_err();
    assert!(error.to_string().contains("did not answer within 5s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_another_question_is_refused() {
    for (mood, reason) in [
        (Mood::NamesSomebodyElse, "somebody-else instead of"),
        (Mood::CertifiesAnotherKey, "another key"),
        (Mood::SendsNoRoots, "no usable root"),
        (Mood::SendsAnotherRoot, "cannot be verified"),
    ] {
        let (certificates, ca) = start();
        ca.be(mood);
        certificates.want(shop("pay"));
        let error = certificates.get(&shop("pay")).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{mood:?}: {error}");
        assert!(certificates.current(&shop("pay")).is_none(), "{mood:?}");
        ca.be(Mood::Well);
        certificates.get(&shop("pay")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_gone_at_once_and_stays_so() {
    let (certificates, ca) = start();
    certificates.want(shop("pay"));
    certificates.get(&shop("pay")).await.unwrap();
    certificates.forget(&shop("pay"));
    assert!(certificates.current(&shop("pay")).is_none());
    sleep(2 * DAY).await;
    assert_eq!(ca.calls(), 1);
    // Forgotten while it is being fetched: the answer is dropped, and whoever waits is told.
    certificates.want(shop("pay"));
    let waiting = tokio::spawn({
        let certificates = certificates.clone();
        async move { certificates.get(&shop("pay")).await }
    });
    advance(Duration::from_millis(10)).await;
    certificates.forget(&shop("pay"));
    assert!(matches!(waiting.await.unwrap(), Err(CertificateError::NotWanted(_))));
    sleep(MINUTE).await;
    assert!(certificates.current(&shop("pay")).is_none());
    assert!(certificates.states().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_full_node_starts_with_bounded_concurrency_and_waiters_first() {
    let (certificates, ca) = start();
    for n in 0..200 {
        certificates.want(shop(&format!("w{n}")));
    }
    let started = Instant::now();
    certificates.get(&shop("w199")).await.unwrap();
    assert!(
        started.elapsed() < 100 * SECOND / 1000,
        "it did not queue behind the others: {:?}",
        started.elapsed()
    );
    sleep(10 * SECOND).await;
    assert_eq!(ca.calls(), 200);
    assert!(ca.flying_max.load(Ordering::SeqCst) <= 8);
    assert!(certificates.states().iter().all(|state| state.certificate.is_some()));
}

#[test]
fn the_system_clock_tells_the_time() {
    assert!(SystemClock.now() > epoch());
}
