//! Another user for the command.

use std::{
    ffi::{CString, OsString},
    process::Command,
};

use nix::unistd::{self, Gid, Uid};

use crate::cli::Failure;

/// Whom to run the command as.
#[derive(Debug)]
pub struct User {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    home: Option<OsString>,
    name: String,
}

impl User {
    /// A user by name or number.
    pub fn find(text: &str) -> Result<Self, Failure> {
        let unknown =
            || Failure::input(format!("there is no user `{text}`"), "name one of /etc/passwd, or write its number");
        let known = match text.parse() {
            Ok(uid) => unistd::User::from_uid(Uid::from_raw(uid)),
            Err(_) => unistd::User::from_name(text),
        };
        match known {
            Ok(Some(user)) => {
                let name = CString::new(user.name.clone()).map_err(|_| unknown())?;
                Ok(Self {
                    uid: user.uid,
                    gid: user.gid,
                    groups: unistd::getgrouplist(&name, user.gid).unwrap_or_else(|_| vec![user.gid]),
                    home: Some(user.dir.into_os_string()),
                    name: user.name,
                })
            }
            // A number without an entry is a user all the same, with no name, home or further groups.
            _ => {
                let uid = text.parse().map_err(|_| unknown())?;
                let gid = Gid::from_raw(uid);
                Ok(Self { uid: Uid::from_raw(uid), gid, groups: vec![gid], home: None, name: text.to_owned() })
            }
        }
    }

    /// Tells the command who it is.
    pub fn describe(&self, command: &mut Command) {
        command.env("USER", &self.name).env("LOGNAME", &self.name);
        if let Some(home) = &self.home {
            command.env("HOME", home);
        }
    }

    /// Makes this process the user's, for good.
    pub fn assume(&self) -> nix::Result<()> {
        unistd::setgroups(&self.groups)?;
        unistd::setgid(self.gid)?;
        unistd::setuid(self.uid)
    }
}
