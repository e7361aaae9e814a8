//! Domain names: from the wire to the canonical key (RFC 1035, 3.1 and 4.1.4).

use super::bytes::{again, byte, low_bytes, opaque, set_byte, set_word, set_word_within, splat, word, word_within};
use crate::{
    abi::{KeyBuffer, NAME_KEY, NAME_MAX},
    repeat::{Step, repeat},
};

/// Labels of the longest name (RFC 1035: 255 octets, two for each).
const LABELS_MAX: u32 = 127;
/// Turns for one compressed name: its labels and as many pointers.
const EXPAND_TURNS: u32 = 2 * LABELS_MAX + 1;
/// Words of the longest name.
const WORDS: u32 = (NAME_MAX as u32).div_ceil(8);

/// Where a text starts in its buffer: reversing reads up to 7 bytes before it.
pub const TEXT_AT: u64 = 8;
/// Bytes of a text buffer: what comes before, the name, and what copying labels by words writes past it.
pub const TEXT_BYTES: usize = 8 + 256 + 64;

/// A walk over a name's labels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Labels {
    /// Where the next length byte is.
    pub at: u64,
    /// Where the part that is being read started: a pointer must go before it.
    pub floor: u64,
    /// Where the name ends in the message: after its 0 byte or its first pointer; 0 until it is known.
    pub end: u64,
    /// Where the next label goes in the text.
    pub out: u64,
    /// Labels so far.
    pub count: u64,
    /// Bytes of the first label.
    pub first: u64,
    /// 1 once the name's end was read.
    pub done: u64,
}

/// Walks a name that has no pointers, such as a question's, and overwrites each length byte with a dot: the text is
/// then what stands from the first label on. Returns whether it is well-formed; `labels.at` is where its 0 byte is.
#[inline(always)]
pub fn dot<const N: usize>(message: &mut [u8; N], at: u64, len: u64, labels: &mut Labels) -> bool {
    *labels = Labels { at, floor: at, first: u64::from(byte(message, at)), ..Labels::default() };
    repeat(LABELS_MAX.div_ceil(2) + 1, &mut Dot { message, labels, len });
    labels.done == 1
}

/// Two labels a turn: a call of the loop's body costs about as much as a label.
struct Dot<'a, const N: usize> {
    message: &'a mut [u8; N],
    labels: &'a mut Labels,
    len: u64,
}

impl<const N: usize> Step for Dot<'_, N> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        self.label() && self.label()
    }
}

impl<const N: usize> Dot<'_, N> {
    #[inline(always)]
    fn label(&mut self) -> bool {
        let at = self.labels.at;
        // 254 octets before the 0 byte, which is the 255th (RFC 1035, 2.3.4).
        if at >= self.len || at - self.labels.floor > 254 {
            return false;
        }
        let length = u64::from(byte(self.message, at));
        if length == 0 {
            self.labels.done = 1;
            return false;
        }
        if length > 63 {
            return false;
        }
        set_byte(self.message, at, b'.');
        self.labels.at = at + length + 1;
        self.labels.count += 1;
        true
    }
}

/// Copies a name, which may be compressed, as dotted text to `text` from [`TEXT_AT`] on. Returns whether it is
/// well-formed; `labels.end` is where it ends in the message, `labels.out - TEXT_AT` the text's length.
///
/// A pointer must go to before the part of the name that it stands in, so no chain of them goes round (RFC 1035, 4.1.4
/// says "a prior occurrence").
#[inline(always)]
pub fn expand<const N: usize>(
    message: &[u8; N],
    at: u64,
    len: u64,
    text: &mut [u8; TEXT_BYTES],
    labels: &mut Labels,
) -> bool {
    *labels = Labels { at, floor: at, out: TEXT_AT - 1, ..Labels::default() };
    repeat(EXPAND_TURNS, &mut Expand { message, text, labels, len });
    labels.done == 1
}

struct Expand<'a, const N: usize> {
    message: &'a [u8; N],
    text: &'a mut [u8; TEXT_BYTES],
    labels: &'a mut Labels,
    len: u64,
}

impl<const N: usize> Step for Expand<'_, N> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        let at = self.labels.at;
        if at >= self.len {
            return false;
        }
        let length = u64::from(byte(self.message, at));
        if length == 0 {
            if self.labels.end == 0 {
                self.labels.end = at + 1;
            }
            self.labels.done = 1;
            return false;
        }
        if length >= 0xc0 {
            if at + 1 >= self.len {
                return false;
            }
            let target = (length & 0x3f) << 8 | u64::from(byte(self.message, at + 1));
            if target >= self.labels.floor || target < 12 {
                return false;
            }
            if self.labels.end == 0 {
                self.labels.end = at + 2;
            }
            self.labels.at = target;
            self.labels.floor = target;
            return true;
        }
        let out = self.labels.out;
        if length > 63 || at + 1 + length > self.len || out + 1 + length > TEXT_AT + NAME_MAX as u64 {
            return false;
        }
        if self.labels.count == 0 {
            self.labels.first = length;
        }
        set_byte(self.text, out, b'.');
        let mut done = 0;
        // Words past the label's end are overwritten by the next one, or are never read.
        while done < 64 {
            if done >= opaque(length) {
                break;
            }
            set_word(self.text, out + 1 + done, word(self.message, at + 1 + done));
            done += 8;
        }
        self.labels.at = at + 1 + length;
        self.labels.out = out + 1 + length;
        self.labels.count += 1;
        true
    }
}

/// State of [`reverse`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Reversal {
    /// Bytes that no name's key may have.
    bad: u64,
    /// Dots.
    dots: u64,
    hash: u64,
}

/// Makes the key of the dotted text that stands in `source` from `start` on: reversed, in lower case, 0 after its end.
/// `start` is at least 8. `key` is zeros, or was made by this before. `key.plain` tells whether it is fit to be looked up: a dot inside a label is not, since it
/// would make `evil\.example.com` look like a name under another.
#[inline(always)]
pub fn reverse<const N: usize>(
    source: &[u8; N],
    start: u64,
    len: u64,
    labels: &Labels,
    key: &mut KeyBuffer,
    state: &mut Reversal,
) {
    *state = Reversal::default();
    clear(&mut key.name, again(&key.len));
    key.len = len;
    key.first = labels.first;
    repeat(WORDS.div_ceil(2), &mut Reverse { source, key, state, start, len });
    key.hash = state.hash ^ state.hash >> 32;
    key.plain = u64::from(len != 0 && len <= NAME_MAX as u64 && state.bad == 0 && state.dots + 1 == labels.count);
}

/// Bytes that are cleared after every name; the rest only after one that was longer. Nearly all are shorter.
const SHORT: usize = 64;

/// Writes zeros over a name of `len` bytes, after which there are zeros already. By words: a `memset` would go by single bytes here,
/// as the field's alignment is 2.
#[inline(always)]
fn clear(name: &mut [u8; 258], len: u64) {
    let mut at = 0;
    while at < SHORT {
        // SAFETY: the field's 258 bytes hold 32 words.
        unsafe {
            let to = name.as_mut_ptr().add(at);
            #[cfg(target_arch = "bpf")]
            core::arch::asm!("*(u64 *)({0} + 0) = {1}", in(reg) to, in(reg) 0_u64, options(nostack, preserves_flags));
            #[cfg(not(target_arch = "bpf"))]
            core::ptr::write_unaligned(to.cast(), 0_u64);
        }
        at += 8;
    }
    if len > SHORT as u64 {
        // A loop that the verifier walks once, for names that hardly anybody asks for.
        repeat((256 - SHORT as u32) / 8, &mut Clear { name });
    }
}

struct Clear<'a> {
    name: &'a mut [u8; 258],
}

impl Step for Clear<'_> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        set_word(self.name, SHORT as u64 + u64::from(index) * 8, 0);
        true
    }
}

/// Two words a turn, as in [`Dot`].
struct Reverse<'a, const N: usize> {
    source: &'a [u8; N],
    key: &'a mut KeyBuffer,
    state: &'a mut Reversal,
    start: u64,
    len: u64,
}

const HIGH: u64 = splat(0x80);

/// Per byte, the high bit: whether the byte (below 128) is at least `bound`.
#[inline(always)]
const fn at_least(bytes: u64, bound: u8) -> u64 {
    bytes + splat(0x80 - bound)
}

/// Per byte, the high bit: whether the byte (below 128) is `wanted`.
#[inline(always)]
const fn equal(bytes: u64, wanted: u8) -> u64 {
    !((bytes ^ splat(wanted)) + splat(0x7f))
}

impl<const N: usize> Step for Reverse<'_, N> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let done = u64::from(index) * 16;
        if done >= self.len {
            return false;
        }
        self.word(done);
        if done + 8 >= self.len {
            return false;
        }
        self.word(done + 8);
        done + 16 < self.len
    }
}

/// The places in a key where a word of a name starts: multiples of 8.
const KEY_WORDS: usize = {
    assert!(0xf8 + 8 <= NAME_KEY + 4 && 8 * (WORDS as usize - 1) <= 0xf8);
    0xf8
};

impl<const N: usize> Reverse<'_, N> {
    /// The places in the source where a word of a name may start: all of a text (`TEXT_AT` and the longest name), and of a question.
    const PLACES: usize = {
        let places = if N > 4096 { 0xfff } else { 0xff };
        assert!(places + 8 <= N && TEXT_AT as usize + NAME_MAX - 8 <= 0xff);
        places
    };

    /// Reverses the word from `done` on, which comes before the text's end.
    #[inline(always)]
    fn word(&mut self, done: u64) {
        let mask = low_bytes(self.len - done);
        // Eight bytes that end where the last turn's began; what stands before the text is masked away.
        let at = self.start + self.len - done - 8;
        // SAFETY: the words of `PLACES` are in the source.
        let bytes = unsafe { word_within(self.source, at, Self::PLACES) }.swap_bytes() & mask;
        let ascii = bytes & !HIGH;
        let upper = at_least(ascii, b'A') & !at_least(ascii, b'Z' + 1) & HIGH;
        let lower = ascii | upper >> 2;
        let letter = at_least(lower, b'a') & !at_least(lower, b'z' + 1);
        let digit = at_least(lower, b'0') & !at_least(lower, b'9' + 1);
        let dot = equal(lower, b'.') & HIGH & mask;
        let good = letter | digit | dot | equal(lower, b'-') | equal(lower, b'_');
        self.state.bad |= (!good | bytes) & HIGH & mask;
        self.state.dots += (dot >> 7).wrapping_mul(splat(1)) >> 56;
        self.state.hash = (self.state.hash ^ lower).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // SAFETY: those of `KEY_WORDS` are in the key.
        unsafe { set_word_within(&mut self.key.name, done, lower, KEY_WORDS) };
    }
}

/// Whether two keys hold the same name.
#[inline(always)]
pub fn same(a: &KeyBuffer, b: &KeyBuffer, differ: &mut u64) -> bool {
    if a.len != b.len || a.plain == 0 || b.plain == 0 || a.hash != b.hash {
        return false;
    }
    *differ = 0;
    repeat(WORDS, &mut Compare { a: &a.name, b: &b.name, at_a: 0, len: a.len, differ });
    *differ == 0
}

/// Whether `len` bytes of `a` from `at_a` on are those that `b` starts with. `differ` is scratch memory.
#[inline(always)]
pub fn starts_with<const A: usize, const B: usize>(
    a: &[u8; A],
    at_a: u64,
    b: &[u8; B],
    len: u64,
    turns: u32,
    differ: &mut u64,
) -> bool {
    *differ = 0;
    repeat(turns, &mut Compare { a, b, at_a, len, differ });
    *differ == 0
}

struct Compare<'a, const A: usize, const B: usize> {
    a: &'a [u8; A],
    b: &'a [u8; B],
    at_a: u64,
    len: u64,
    differ: &'a mut u64,
}

impl<const A: usize, const B: usize> Step for Compare<'_, A, B> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let done = u64::from(index) * 8;
        if done >= self.len {
            return false;
        }
        let mask = low_bytes(self.len - done);
        *self.differ = (word(self.a, self.at_a + done) ^ word(self.b, done)) & mask;
        *self.differ == 0
    }
}
