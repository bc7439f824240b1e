//! Wall-clock time: certificates expire by it, also while the machine sleeps and timers stand still.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;

/// The instant of a certificate's time.
pub(crate) fn instant(time: UnixTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

/// How long until `instant`; zero once it has come.
pub(crate) fn until(instant: SystemTime) -> Duration {
    instant.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO)
}

/// `instant` in seconds since the epoch, for a metric.
pub(crate) fn seconds(instant: SystemTime) -> f64 {
    instant.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// Sleeps until the wall clock shows `instant`, within [`LOOK`] even where the clock was set or the machine slept.
pub(crate) async fn sleep_until(instant: SystemTime) {
    loop {
        let left = until(instant);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

const LOOK: Duration = Duration::from_secs(15);
