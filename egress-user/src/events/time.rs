//! From the kernel's monotonic clock to the wall clock.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A moment by the wall clock, in microseconds since 1970; RFC 3339 in UTC as text and in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment now.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Whole seconds since 1970.
    pub fn seconds(self) -> u64 {
        self.0 / 1_000_000
    }

    /// `12:03:44`, in UTC or in the zone that the machine is set to.
    pub fn time_of_day(self, local: bool) -> String {
        let seconds =
            if local { self.seconds().saturating_add_signed(local_offset(self.seconds())) } else { self.seconds() };
        let day = seconds % 86_400;
        format!("{:02}:{:02}:{:02}", day / 3600, day / 60 % 60, day % 60)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// Year 9999 is the last that RFC 3339 can write.
const LAST: u64 = 253_402_300_799_999_999;

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = UNIX_EPOCH + Duration::from_micros(self.0.min(LAST));
        humantime::format_rfc3339_micros(time).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map(Self::from).map_err(de::Error::custom)
    }
}

/// Seconds that local time is ahead of UTC at a moment.
fn local_offset(seconds: u64) -> i64 {
    let time = libc::time_t::try_from(seconds).unwrap_or_default();
    // SAFETY: `tm` is plain data for which all zeros is valid, and localtime_r writes to it alone; it is the variant
    // that keeps no shared result. Nothing in this program sets the environment, which it reads TZ from.
    unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&raw const time, &raw mut tm).is_null() { 0 } else { tm.tm_gmtoff }
    }
}

/// How the clocks stand to each other at one moment. Taken anew for every event, so that a step of the wall clock is
/// followed at once.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub monotonic: u64,
    /// `CLOCK_BOOTTIME`, in nanoseconds: the same, and the time asleep.
    pub boot: u64,
    /// The wall clock.
    pub wall: Timestamp,
}

impl Clock {
    /// The clocks now.
    pub fn now() -> Self {
        let read = |id| {
            // These clocks exist since Linux 2.6.39; reading them does not fail.
            clock_gettime(id).map_or(0, |time| u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX))
        };
        Self { monotonic: read(ClockId::CLOCK_MONOTONIC), boot: read(ClockId::CLOCK_BOOTTIME), wall: Timestamp::now() }
    }

    /// The wall clock's time at `monotonic` nanoseconds.
    pub fn wall(&self, monotonic: u64) -> Timestamp {
        let ago = self.monotonic.saturating_sub(monotonic) / 1000;
        let ahead = monotonic.saturating_sub(self.monotonic) / 1000;
        Timestamp(self.wall.0.saturating_sub(ago).saturating_add(ahead))
    }

    /// `CLOCK_BOOTTIME` at `monotonic` nanoseconds.
    pub fn boot(&self, monotonic: u64) -> u64 {
        monotonic.saturating_add(self.boot.saturating_sub(self.monotonic))
    }
}
