//! Which name has which addresses: what the kernel and the resolver said, kept for people and for the next generation.
//!
//! A million addresses are to fit beside a large policy, so nothing is kept twice: names and resolvers have numbers.

mod addresses;
mod names;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use egress_ebpf::abi::{TICK_SHIFT, Ticks};

use self::{
    addresses::{Addresses, Pair},
    names::Names,
};
use crate::datapath::Learned;

/// Names that are kept at most; past it those that expired first go.
const NAMES_MAX: usize = 200_000;

/// Addresses of names that are kept at most, for the same: whoever runs the name servers below a wildcard can give it as many as there are.
const ADDRESSES_MAX: usize = 4_000_000;

/// What is full of what still lives is not looked through for each name that comes: after so long again, 9 s.
const FULL: Ticks = 8;

/// A restart is to know how old an answer is, give or take this: a quarter of an hour.
const TOLD_EVERY: Ticks = ((15 * 60 * 1_000_000_000_u64) >> TICK_SHIFT) as Ticks;

/// How long an address is known past its expiry: an hour, since a person asks about what just ended.
const KEPT: Ticks = ((60 * 60 * 1_000_000_000_u64) >> TICK_SHIFT) as Ticks;

/// Fewer new addresses than this are not worth a look at all of them.
const LOOK_EVERY: usize = 1024;

/// Of an address with many names so many are looked at for those said last.
const LOOKED_AT: usize = 1024;

/// An address of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it stops counting.
    pub expiry: Ticks,
    /// Who said so last, as `ADDRESS:PORT`.
    pub resolver: Arc<str>,
    /// When it was said last.
    pub learned: Ticks,
}

/// Names and their addresses.
#[derive(Debug)]
pub struct Book {
    names: Names,
    four: Addresses<Ipv4Addr>,
    six: Addresses<Ipv6Addr>,
    /// Each resolver's text once, by number.
    resolvers: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
    version: u64,
    /// Counts how often names got other numbers.
    renumbered: u64,
    /// Addresses of names that were there after the last look for what is over, and that came since then.
    held: usize,
    come: usize,
    /// From when on is looked again whether there is room.
    full_until: Ticks,
    names_max: usize,
    addresses_max: usize,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            names: Names::default(),
            four: Addresses::default(),
            six: Addresses::default(),
            resolvers: Vec::new(),
            numbers: HashMap::new(),
            version: 0,
            renumbered: 0,
            held: 0,
            come: 0,
            full_until: 0,
            names_max: NAMES_MAX,
            addresses_max: ADDRESSES_MAX,
        }
    }
}

impl Book {
    /// Writes an answer down; of two expiries the later one counts.
    pub fn learn(&mut self, name: &str, addresses: &[(IpAddr, Ticks)], resolver: &str, now: Ticks) {
        if addresses.is_empty() {
            return;
        }
        let full = self.names.len() >= self.names_max && self.names.number(name).is_none();
        if full && (!self.make_room(now) || self.names.len() >= self.names_max) {
            return;
        }
        let resolver = self.resolver(resolver);
        // A name is added with its first address: one that has none would be found by no look at the addresses.
        let mut number = self.names.number(name);
        for &(address, expiry) in addresses {
            if let Some(known) = number
                && let Some(pair) = self.find_mut(known, address)
            {
                // Counted in quarters of an hour since the start, which no pair has to remember.
                let told = now / TOLD_EVERY == *pair.learned / TOLD_EVERY;
                *pair.expiry = expiry.max(*pair.expiry);
                (*pair.learned, *pair.resolver) = (now, resolver);
                self.version += u64::from(!told);
                continue;
            }
            if self.len() >= self.addresses_max {
                if !self.make_room(now) || self.len() >= self.addresses_max {
                    continue;
                }
                number = self.names.number(name);
            }
            let known = *number.get_or_insert_with(|| self.names.add(name));
            let said = (expiry, now, resolver);
            match address {
                IpAddr::V4(address) => self.four.add(known, address, said),
                IpAddr::V6(address) => self.six.add(known, address, said),
            }
            self.version += 1;
            self.come += 1;
        }
        // Each look at all of them is paid for by as many new ones: names whose addresses rotate leave no more than that behind.
        if self.come > self.held.max(LOOK_EVERY) {
            self.forget(now, KEPT);
        }
    }

    /// Lets addresses of a name count for longer, though nobody said so anew: resolvers fail.
    pub fn prolong(&mut self, name: &str, addresses: &[(IpAddr, Ticks)]) {
        let Some(name) = self.names.number(name) else { return };
        for &(address, expiry) in addresses {
            if let Some(pair) = self.find_mut(name, address) {
                *pair.expiry = expiry.max(*pair.expiry);
            }
        }
    }

    fn len(&self) -> usize {
        self.four.len() + self.six.len()
    }

    fn resolver(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let (number, new): (_, Arc<str>) = (self.resolvers.len() as u32, text.into());
        self.resolvers.push(Arc::clone(&new));
        self.numbers.insert(new, number);
        number
    }

    /// Drops what expired, if that was not tried just now; gives whether it was.
    fn make_room(&mut self, now: Ticks) -> bool {
        if now < self.full_until {
            return false;
        }
        self.forget(now, 0);
        self.full_until = now.saturating_add(FULL);
        true
    }

    /// Drops what expired longer than `kept` ago.
    fn forget(&mut self, now: Ticks, kept: Ticks) {
        let counts = |expiry: Ticks| expiry.saturating_add(kept) > now;
        self.four.retain(|pair| counts(pair.expiry));
        self.six.retain(|pair| counts(pair.expiry));
        let mut used = vec![false; self.names.len()];
        let names = self.four.iter().map(|pair| pair.name).chain(self.six.iter().map(|pair| pair.name));
        names.for_each(|name| used[name as usize] = true);
        let numbers = self.names.retain(&used);
        self.four.renumber(&numbers);
        self.six.renumber(&numbers);
        self.renumbered += 1;
        self.held = self.len();
        self.come = 0;
    }

    /// Another number when a name has an address that it had not, or one was said anew a good while after it last counted.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many names there are, those that expired among them: numbers for [`Book::said`].
    pub fn names(&self) -> u32 {
        self.names.len() as u32
    }

    /// Another number when names have other numbers.
    pub fn renumbered(&self) -> u64 {
        self.renumbered
    }

    /// The living addresses of the name with this number, each with who said so, and when.
    pub fn said(&self, number: u32, now: Ticks) -> (&str, Vec<(IpAddr, &str, Ticks)>) {
        let living = self.of_name(number).filter(|pair| pair.expiry > now);
        let said = living.map(|pair| (pair.address, &*self.resolvers[pair.resolver as usize], pair.learned));
        (self.names.name(number), said.collect())
    }

    /// How many names have living addresses, and how many these are.
    pub fn count(&self, now: Ticks) -> (usize, usize) {
        let living = (0..self.names()).map(|name| self.of_name(name).filter(|pair| pair.expiry > now).count());
        living.fold((0, 0), |(names, addresses), count| (names + usize::from(count != 0), addresses + count))
    }

    /// The names that an address has or had, the one that came first first.
    pub fn names_of(&self, address: IpAddr) -> Vec<String> {
        let mut names: Vec<String> =
            self.of_address(address).map(|pair| self.names.name(pair.name).to_owned()).collect();
        names.reverse();
        names
    }

    /// Some of these, the one said last first. However many there are, it takes no longer.
    pub fn last_names_of(&self, address: IpAddr, most: usize) -> Vec<String> {
        let mut pairs: Vec<_> = self.of_address(address).take(LOOKED_AT).collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.learned));
        pairs.into_iter().take(most).map(|pair| self.names.name(pair.name).to_owned()).collect()
    }

    /// What is known of a name and an address, also when it no longer counts.
    pub fn entry(&self, name: &str, address: IpAddr) -> Option<Entry> {
        let name = self.names.number(name)?;
        let pair = match address {
            IpAddr::V4(address) => self.four.find(name, address).map(common),
            IpAddr::V6(address) => self.six.find(name, address).map(common),
        };
        pair.map(|pair| self.told(&pair))
    }

    /// The living addresses of a name.
    pub fn addresses_of(&self, name: &str, now: Ticks) -> Vec<(IpAddr, Entry)> {
        let Some(name) = self.names.number(name) else { return Vec::new() };
        let living = self.of_name(name).filter(|pair| pair.expiry > now);
        let mut living: Vec<_> = living.map(|pair| (pair.address, self.told(&pair))).collect();
        living.sort_by_key(|(address, _)| *address);
        living
    }

    /// Every name with its living addresses.
    pub fn living(&self, now: Ticks) -> Vec<Learned> {
        (0..self.names()).filter_map(|name| self.living_of(name, now)).collect()
    }

    /// The name with this number and its living addresses, if there are any.
    pub fn living_of(&self, number: u32, now: Ticks) -> Option<Learned> {
        let living = self.of_name(number).filter(|pair| pair.expiry > now);
        let addresses: Vec<_> = living.map(|pair| (pair.address, pair.expiry)).collect();
        (!addresses.is_empty()).then(|| Learned { name: self.names.name(number).to_owned(), addresses })
    }

    fn told(&self, pair: &Pair<IpAddr>) -> Entry {
        let resolver = Arc::clone(&self.resolvers[pair.resolver as usize]);
        Entry { expiry: pair.expiry, resolver, learned: pair.learned }
    }

    fn of_name(&self, name: u32) -> impl Iterator<Item = Pair<IpAddr>> {
        self.four.of_name(name).map(common).chain(self.six.of_name(name).map(common))
    }

    fn of_address(&self, address: IpAddr) -> impl Iterator<Item = Pair<IpAddr>> {
        let (four, six) = match address {
            IpAddr::V4(address) => (Some(address), None),
            IpAddr::V6(address) => (None, Some(address)),
        };
        let four = four.into_iter().flat_map(|address| self.four.of_address(address).map(common));
        four.chain(six.into_iter().flat_map(|address| self.six.of_address(address).map(common)))
    }

    fn find_mut(&mut self, name: u32, address: IpAddr) -> Option<Said<'_>> {
        Some(match address {
            IpAddr::V4(address) => said(self.four.find_mut(name, address)?),
            IpAddr::V6(address) => said(self.six.find_mut(name, address)?),
        })
    }
}

/// What of a pair changes.
struct Said<'a> {
    expiry: &'a mut Ticks,
    learned: &'a mut Ticks,
    resolver: &'a mut u32,
}

fn said<A>(pair: &mut Pair<A>) -> Said<'_> {
    Said { expiry: &mut pair.expiry, learned: &mut pair.learned, resolver: &mut pair.resolver }
}

/// A pair of either family.
fn common<A: Copy + Into<IpAddr>>(pair: &Pair<A>) -> Pair<IpAddr> {
    pair.with(pair.address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "a.example.com";

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn the_later_expiry_counts() {
        let mut book = Book::default();
        book.learn(NAME, &[(address(1), 100)], "r", 0);
        book.learn(NAME, &[(address(1), 50)], "r", 1);
        assert_eq!(book.addresses_of(NAME, 0)[0].1.expiry, 100);
        assert!(book.addresses_of(NAME, 100).is_empty());
    }

    #[test]
    fn an_answer_does_not_evict_the_other_family() {
        let mut book = Book::default();
        let six: IpAddr = "2001:db8::1".parse().unwrap();
        book.learn(NAME, &[(address(1), 100)], "r", 0);
        book.learn(NAME, &[(six, 100)], "r", 0);
        assert_eq!(book.addresses_of(NAME, 0).len(), 2);
    }

    #[test]
    fn a_failure_prolongs_what_was_said_and_says_nothing_itself() {
        let mut book = Book::default();
        book.learn(NAME, &[(address(1), 100)], "r", 5);
        book.prolong(NAME, &[(address(1), 200), (address(2), 200)]);
        let known = book.addresses_of(NAME, 150);
        assert_eq!(known, [(address(1), Entry { expiry: 200, resolver: "r".into(), learned: 5 })]);
    }

    #[test]
    fn an_address_said_again_is_worth_writing_down_now_and_then() {
        let mut book = Book::default();
        book.learn(NAME, &[(address(1), 10_000)], "r", 0);
        let first = book.version();
        book.learn(NAME, &[(address(1), 10_000)], "r", TOLD_EVERY - 1);
        assert_eq!(book.version(), first);
        book.learn(NAME, &[(address(1), 10_000)], "r", TOLD_EVERY);
        assert!(book.version() > first);
        assert_eq!(book.entry(NAME, address(1)).unwrap().learned, TOLD_EVERY);
    }

    #[test]
    fn an_address_keeps_its_name_until_it_is_forgotten() {
        let mut book = Book::default();
        book.learn(NAME, &[(address(1), 10)], "r", 0);
        assert_eq!(book.names_of(address(1)), [NAME]);
        book.forget(10 + KEPT - 1, KEPT);
        assert_eq!(book.names_of(address(1)), [NAME]);
        book.forget(10 + KEPT, KEPT);
        assert!(book.names_of(address(1)).is_empty());
        assert!(book.living(0).is_empty());
    }

    /// What S3 and CDNs do: other addresses all the time. An hour of them is kept, not all that ever were.
    #[test]
    fn a_name_that_rotates_leaves_an_hour_behind() {
        const LIFE: Ticks = 60;
        let mut book = Book::default();
        let count = 40 * KEPT;
        for turn in 0..count {
            book.learn(NAME, &[(IpAddr::from(turn.to_be_bytes()), turn + LIFE)], "r", turn);
        }
        let last = IpAddr::from((count - 1).to_be_bytes());
        assert_eq!(
            (book.names_of(last), book.addresses_of(NAME, count - 1).len()),
            (vec![NAME.to_owned()], LIFE as usize)
        );
        let past = IpAddr::from((count - KEPT / 2).to_be_bytes());
        assert_eq!(book.names_of(past), [NAME], "it ended less than an hour ago");
        let (held, most) = (book.len(), 2 * (KEPT + LIFE) as usize + 2);
        assert!(held <= most && book.of_name(0).count() == held, "{held} of {most}");
    }

    #[test]
    fn what_is_full_gives_way_where_something_ended_and_takes_what_it_has_anew() {
        let mut book = Book { names_max: 2, addresses_max: 3, ..Book::default() };
        book.learn("a.com", &[(address(1), 10), (address(2), 100)], "r", 0);
        book.learn("b.com", &[(address(1), 100), (address(3), 100)], "r", 0);
        assert_eq!(book.count(0), (2, 3), "the fourth had no room");
        book.learn("c.com", &[(address(1), 100)], "r", 0);
        assert_eq!(book.names_of(address(1)), ["a.com", "b.com"], "nor had the third name");
        book.learn("a.com", &[(address(2), 200)], "r", 1);
        assert_eq!(book.entry("a.com", address(2)).unwrap().expiry, 200);
        book.learn("b.com", &[(address(3), 100)], "s", 10 + FULL);
        assert_eq!(book.names_of(address(1)), ["b.com"], "one of the others' ended");
        assert_eq!(&*book.entry("b.com", address(3)).unwrap().resolver, "s");
        // Both names live: it is not looked at once more for each that comes.
        let looks = book.renumbered();
        for n in 0..100 {
            book.learn(&format!("{n}.com"), &[(address(9), 1000)], "r", 11 + FULL);
        }
        assert_eq!((book.renumbered(), book.names()), (looks, 2));
        book.learn("c.com", &[(address(9), 1000)], "r", 300);
        assert_eq!((book.names_of(address(9)), book.names()), (vec!["c.com".to_owned()], 1));
    }

    /// What whoever runs the name servers below a wildcard can do: many names of one address, and many addresses of one name. A step that
    /// walked them all would be seen: ten thousand million of them.
    #[test]
    fn many_names_of_an_address_and_many_addresses_of_a_name_cost_no_more_each() {
        const MANY: u32 = 100_000;
        let mut book = Book::default();
        let start = std::time::Instant::now();
        for n in 0..MANY {
            let of_name = IpAddr::from(n.to_be_bytes());
            book.learn(&format!("{n}.example.com"), &[(address(1), 100)], "r", 0);
            book.learn(NAME, &[(of_name, 100)], "r", 0);
            assert_eq!(book.last_names_of(of_name, 8), [NAME]);
        }
        assert!(start.elapsed() < std::time::Duration::from_secs(30), "{:?}", start.elapsed());
        assert_eq!(book.last_names_of(address(1), 8).len(), 8);
        assert_eq!((book.names_of(address(1)).len(), book.addresses_of(NAME, 0).len()), (MANY as usize, MANY as usize));
        assert_eq!(book.count(0), (MANY as usize + 1, 2 * MANY as usize));
    }

    /// The book against the plain way to keep one.
    #[test]
    fn it_says_what_a_plain_one_says() {
        use std::collections::{BTreeMap, BTreeSet};
        let (mut book, mut plain) = (Book::default(), BTreeMap::<(String, IpAddr), Ticks>::new());
        let mut random = 1_u32;
        let mut next = |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) % below
        };
        for turn in 0..20_000 {
            let (name, last) = (format!("{}.example.com", next(20)), next(40));
            let at = if next(3) == 0 { IpAddr::from([last as u16; 8]) } else { address(last as u8) };
            let expiry = turn + next(400);
            book.learn(&name, &[(at, expiry)], "r", turn);
            let known = plain.entry((name, at)).or_default();
            *known = expiry.max(*known);
            if turn % 97 == 0 {
                book.forget(turn, 100);
                plain.retain(|_, expiry| *expiry + 100 > turn);
            }
            if turn % 31 == 0 {
                let names =
                    |at: IpAddr| plain.keys().filter(|known| known.1 == at).map(|known| known.0.clone()).collect();
                assert_eq!(book.names_of(at).into_iter().collect::<BTreeSet<_>>(), names(at));
                let living: BTreeMap<(String, IpAddr), Ticks> = book
                    .living(turn)
                    .into_iter()
                    .flat_map(|learned| {
                        learned.addresses.into_iter().map(move |(at, expiry)| ((learned.name.clone(), at), expiry))
                    })
                    .collect();
                let wanted = plain.iter().filter(|(_, expiry)| **expiry > turn);
                assert_eq!(living, wanted.map(|(known, expiry)| (known.clone(), *expiry)).collect());
                let names: BTreeSet<_> = living.keys().map(|(name, _)| name).collect();
                assert_eq!(book.count(turn), (names.len(), living.len()));
            }
        }
    }
}
