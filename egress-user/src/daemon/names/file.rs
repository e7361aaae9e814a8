//! The file of names: written name by name and read so, since a million addresses in memory at once would be more than all the rest.
//!
//! `{"boot": ..., "names": {NAME: {ADDRESS: [RESOLVER, WHEN]}}}`

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use egress_ebpf::abi::Ticks;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::super::store::replace;

/// The longest file that is read, and written: room for a million addresses and a half.
const BYTES_MAX: u64 = 64 << 20;

/// Where the names are kept.
#[derive(Clone, Debug)]
pub struct NamesFile {
    pub(super) path: PathBuf,
    bytes_max: u64,
}

/// Which resolver said so, and when, by address.
pub(super) type Said = BTreeMap<IpAddr, (String, Ticks)>;

impl NamesFile {
    /// The file in the state directory.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("names.json"), bytes_max: BYTES_MAX }
    }

    /// Gives each name that was kept since this boot, once all of them are known to be readable. What cannot be read is told: names
    /// are lost and nothing else.
    pub(super) fn read(&self, each: impl FnMut(&str, Said)) -> io::Result<()> {
        use io::Read as _;
        let file = match fs::File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(self.bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > self.bytes_max {
            return Err(io::Error::other("it is too long"));
        }
        // Another boot's names have no addresses in the kernel.
        if parse(&bytes, |_, _| ())? == boot_id()? {
            parse(&bytes, each)?;
        }
        Ok(())
    }

    /// Writes the names that `more` adds to what it is given, as members of a JSON object that are separated by commas, until it says
    /// that there are no more. Not synced to the disk: another boot has no use for it.
    pub(super) fn write(&self, mut more: impl FnMut(&mut Vec<u8>) -> io::Result<bool>) -> io::Result<()> {
        replace(&self.path, false, |file| {
            let mut bytes = format!("{{\"boot\":\"{}\",\"names\":{{", boot_id()?).into_bytes();
            let (mut written, mut empty) = (0, true);
            loop {
                let start = bytes.len();
                let last = !more(&mut bytes)?;
                if bytes.len() != start && !std::mem::replace(&mut empty, false) {
                    bytes.insert(start, b',');
                }
                if last {
                    bytes.extend(b"}}");
                }
                written += bytes.len() as u64;
                if written > self.bytes_max {
                    return Err(io::Error::other(format!("they take more than {} bytes", self.bytes_max)));
                }
                file.write_all(&bytes)?;
                bytes.clear();
                if last {
                    return Ok(());
                }
            }
        })
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Gives the boot that a file is of, and each name to `each`.
fn parse(bytes: &[u8], each: impl FnMut(&str, Said)) -> io::Result<String> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let boot = Whole(each).deserialize(&mut parser)?;
    parser.end()?;
    Ok(boot)
}

/// The file.
struct Whole<F>(F);

impl<'de, F: FnMut(&str, Said)> DeserializeSeed<'de> for Whole<F> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, Said)> Visitor<'de> for Whole<F> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`boot` and `names`")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<String, M::Error> {
        let (mut boot, mut names) = (None, false);
        while let Some(key) = map.next_key::<String>()? {
            match &*key {
                "boot" if boot.is_none() => boot = Some(map.next_value()?),
                "names" if !names => {
                    names = true;
                    map.next_value_seed(Each(&mut self.0))?;
                }
                _ => return Err(M::Error::custom(format!("`{key}`, which is not known here or is there twice"))),
            }
        }
        boot.filter(|_| names).ok_or_else(|| M::Error::custom("`boot` or `names` is missing"))
    }
}

/// Its names.
struct Each<'a, F>(&'a mut F);

impl<'de, F: FnMut(&str, Said)> DeserializeSeed<'de> for Each<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, Said)> Visitor<'de> for Each<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("names with their addresses")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some((name, said)) = map.next_entry::<String, Said>()? {
            (self.0)(&name, said);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Names = BTreeMap<String, Said>;

    fn some() -> Names {
        let address = "192.0.2.1".parse().unwrap();
        let said = ("192.0.2.53:53".into(), 7);
        BTreeMap::from([("a.example.com".to_owned(), BTreeMap::from([(address, said)]))])
    }

    fn file(bytes_max: u64) -> (tempfile::TempDir, NamesFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/names.json");
        (dir, NamesFile { path, bytes_max })
    }

    fn read(file: &NamesFile) -> io::Result<Names> {
        let mut names = Names::new();
        file.read(|name, said| drop(names.insert(name.to_owned(), said))).map(|()| names)
    }

    /// One name after the other, with a turn between them that adds none.
    fn write(file: &NamesFile, names: &Names) -> io::Result<()> {
        let mut turns = names.iter().flat_map(|name| [None, Some(name)]);
        file.write(|bytes| {
            let Some(turn) = turns.next() else { return Ok(false) };
            if let Some((name, said)) = turn {
                let name = serde_json::to_vec(&BTreeMap::from([(name, said)]))?;
                bytes.extend(&name[1..name.len() - 1]);
            }
            Ok(true)
        })
    }

    #[test]
    fn what_is_written_is_read_and_nothing_is_left_beside_it() {
        let (_dir, file) = file(BYTES_MAX);
        assert!(read(&file).unwrap().is_empty());
        write(&file, &Names::new()).unwrap();
        assert!(read(&file).unwrap().is_empty());
        for count in 1..4 {
            let names = (0..count).map(|n| (format!("{n}.example.com"), some().remove("a.example.com").unwrap()));
            let names: Names = names.collect();
            write(&file, &names).unwrap();
            assert_eq!(read(&file).unwrap(), names);
        }
        assert_eq!(fs::read_dir(file.path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn another_boots_names_are_none() {
        let (_dir, file) = file(BYTES_MAX);
        write(&file, &some()).unwrap();
        let text = fs::read_to_string(&file.path).unwrap().replace(&boot_id().unwrap(), "another");
        fs::write(&file.path, text).unwrap();
        assert!(read(&file).unwrap().is_empty());
    }

    #[test]
    fn a_cut_or_long_file_is_an_error_of_which_nothing_is_taken() {
        let (_dir, file) = file(4096);
        write(&file, &some()).unwrap();
        let text = fs::read_to_string(&file.path).unwrap();
        for wrong in [format!("{text}x"), text.replace("}}}", "},\"b.example.com\":7}}"), text.replace("boot", "boots")]
        {
            fs::write(&file.path, wrong).unwrap();
            assert!(file.read(|name, _| panic!("{name}")).is_err());
        }
        for end in 0..text.len() {
            fs::write(&file.path, &text[..end]).unwrap();
            assert!(file.read(|name, _| panic!("{name}")).is_err(), "{end} bytes");
        }
        fs::write(&file.path, format!("{text}{}", " ".repeat(4096))).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("too long"));
        let many = (0..200).map(|n| (format!("{n}.example.com"), some().remove("a.example.com").unwrap())).collect();
        assert!(write(&file, &many).is_err());
        assert!(file.path.exists());
    }
}
