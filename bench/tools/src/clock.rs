//! `CLOCK_MONOTONIC` as a number, which two processes of one machine can compare, and a timer finer than tokio's.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_nanoseconds() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    // Seconds since boot and nanoseconds below a second: neither is negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// A periodic timer of the kernel. tokio's own has a resolution of one millisecond, four requests at 4,000 a second.
#[derive(Debug)]
pub struct Ticks(AsyncFd<OwnedFd>);

impl Ticks {
    /// Starts to tick; the first tick is one `period` from now.
    ///
    /// # Errors
    /// The kernel gives no timer.
    #[expect(
        deprecated,
        reason = "what is to replace it is unsafe; this descriptor is owned and closed with the timer"
    )]
    pub fn start(period: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let period = Timespec { tv_sec: period.as_secs().cast_signed(), tv_nsec: i64::from(period.subsec_nanos()) };
        let setting = Itimerspec { it_interval: period, it_value: period };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting)?;
        Ok(Self(AsyncFd::new(timer)?))
    }

    /// Waits for the next tick; how many there were since the last call.
    ///
    /// # Errors
    /// The timer cannot be read.
    pub async fn next(&self) -> io::Result<u64> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut count = [0; 8];
            match ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?)) {
                Ok(read) => return read.map(|_| u64::from_ne_bytes(count)),
                Err(_would_block) => {}
            }
        }
    }
}
