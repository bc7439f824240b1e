//! Where metrics are kept: those about a peer pass away with it, the others stay.
//!
//! Peers come and go, and each brings series of its own; a sidecar that lives for months would show all that it ever
//! met. So a series with the label `peer` that nothing happens to for a while is forgotten.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;

use super::{BYTES, SECONDS, TelemetryError};

/// The metrics of the process, to be rendered in Prometheus's text form.
#[derive(Debug, Clone)]
pub struct Metrics {
    lasting: PrometheusHandle,
    passing: PrometheusHandle,
}

/// Records into one of two places.
pub(super) struct Recorders {
    lasting: PrometheusRecorder,
    passing: PrometheusRecorder,
}

impl Metrics {
    /// All that is known now.
    pub fn render(&self) -> String {
        let mut text = self.lasting.render();
        text.push_str(&self.passing.render());
        text
    }

    /// Folds the samples of histograms into their buckets, and forgets what has passed, which only happens as it is
    /// rendered.
    pub fn run_upkeep(&self) {
        self.lasting.run_upkeep();
        drop(self.passing.render());
    }
}

impl Recorders {
    /// Recorders, and the handle that renders what they record.
    pub(super) fn new(idle: Duration) -> Result<(Self, Metrics), BuildError> {
        let builder = || {
            PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
                .set_buckets_for_metric(Matcher::Suffix("_bytes".into()), BYTES)
        };
        let lasting = builder()?.build_recorder();
        let passing = builder()?.idle_timeout(MetricKindMask::ALL, Some(idle)).build_recorder();
        let metrics = Metrics { lasting: lasting.handle(), passing: passing.handle() };
        Ok((Self { lasting, passing }, metrics))
    }

    fn of(&self, key: &Key) -> &PrometheusRecorder {
        if key.labels().any(|label| label.key() == "peer") { &self.passing } else { &self.lasting }
    }
}

impl Recorder for Recorders {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.lasting.describe_counter(key.clone(), unit, description.clone());
        self.passing.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.lasting.describe_gauge(key.clone(), unit, description.clone());
        self.passing.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.lasting.describe_histogram(key.clone(), unit, description.clone());
        self.passing.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.of(key).register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.of(key).register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.of(key).register_histogram(key, metadata)
    }
}

/// What a series needs that passes away: its handle is asked for anew where it may have been forgotten in the meantime.
#[derive(Debug)]
pub struct Passing<H> {
    handle: H,
    /// Seconds on some clock.
    used: u64,
}

impl<H> Passing<H> {
    /// The handle in `place`, which `register` gives where there is none yet, or where none was used for so long that
    /// its series may be gone. `now` is in seconds, on one clock for all calls.
    pub fn of(place: &mut Option<Self>, now: u64, register: impl FnOnce() -> H) -> &H {
        let stale = place.as_ref().is_none_or(|passing| now.saturating_sub(passing.used) >= IDLE.as_secs() / 2);
        let passing = if stale { None } else { place.take() };
        let handle = passing.map_or_else(register, |passing| passing.handle);
        &place.insert(Self { handle, used: now }).handle
    }
}

/// How long a series about a peer is shown after the last thing that happened to it.
pub const IDLE: Duration = Duration::from_secs(15 * 60);

/// Installs the recorders for the whole process.
pub(super) fn install() -> Result<Metrics, TelemetryError> {
    let (recorders, metrics) = Recorders::new(IDLE)?;
    metrics::set_global_recorder(recorders).map_err(|_| TelemetryError::Taken)?;
    Ok(metrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_about_a_peer_passes_away_and_another_does_not() {
        let (recorders, metrics) = Recorders::new(Duration::from_millis(50)).unwrap();
        metrics::with_local_recorder(&recorders, || {
            metrics::counter!("lasting_total").increment(1);
            metrics::counter!("passing_total", "peer" => "a").increment(1);
        });
        assert!(metrics.render().contains("passing_total{peer=\"a\"} 1"), "{}", metrics.render());
        // That time makes it pass away is what is tested, and the exporter has a clock of its own.
        std::thread::sleep(Duration::from_millis(60));
        let text = metrics.render();
        assert!(text.contains("lasting_total 1") && !text.contains("passing_total{"), "{text}");
    }

    #[test]
    fn a_handle_is_asked_for_anew_before_its_series_can_be_gone() {
        let mut place = None;
        let half = IDLE.as_secs() / 2;
        assert_eq!(*Passing::of(&mut place, 0, || 1), 1);
        assert_eq!(*Passing::of(&mut place, half - 1, || 2), 1);
        assert_eq!(*Passing::of(&mut place, half + half - 2, || 3), 1);
        assert_eq!(*Passing::of(&mut place, 3 * half, || 4), 4);
    }
}
