use aya::programs::*;
fn main() {
    let data = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress.bpf.o"));
    let t = std::time::Instant::now();
    let btf = aya::Btf::from_sys_fs().unwrap();
    println!("btf {:?}", t.elapsed());
    let mut e = aya::EbpfLoader::new().btf(Some(&btf)).load(data).unwrap();
    println!("object {:?}", t.elapsed());
    let only = std::env::args().nth(1);
    for (name, p) in e.programs_mut() {
        if let Some(o) = &only {
            if o != name {
                continue;
            }
        }
        let name = name.to_string();
        let t = std::time::Instant::now();
        let r = match p {
            Program::CgroupSkb(p) => p.load(),
            Program::SchedClassifier(p) => p.load(),
            Program::CgroupSockAddr(p) => p.load(),
            Program::CgroupSock(p) => p.load(),
            Program::Lsm(p) => {
                let hook = name.trim_start_matches("lsm_").to_string();
                p.load(&hook, &btf)
            }
            _ => panic!(),
        };
        match r {
            Ok(()) => println!(
                "{name:24} ok {:?} verified {:?} jited {:?}",
                t.elapsed(),
                p.info().unwrap().verified_instruction_count(),
                p.info().unwrap().size_jitted()
            ),
            Err(e) => {
                let s = format!("{e:?}");
                let s = s.replace("\\n", "\n");
                let n = s.len();
                println!("{name} FAILED {}\n...\n{}", &s[..400.min(n)], &s[n.saturating_sub(3500)..]);
            }
        }
    }
}
