//! The stable codes: one table for the errors and one for what an inspection finds. `check` has a third, for
//! its findings. `docs/errors.md` explains each code, and a test of `catalog` holds it to these tables.

use super::Error::{self, Proxy, Request, Run, Start, Upload};
use super::{Defect, Foreign, ProxyError, RequestError, RunError, StartError, UploadError};

/// Writes `code` and `CODES` from one table: `code` is an exhaustive `match`, and a test holds the documentation to
/// `CODES`. After the semicolon come causes whose codes are in another table.
macro_rules! codes {
    ($(#[$doc:meta])* $type:ty, $($cause:pat => $code:literal,)+ $(; $($wrapper:pat => $inner:expr,)+)?) => {
        impl $type {
            /// Every code, in the order of the causes.
            pub const CODES: &'static [&'static str] = &[$($code),+];

            $(#[$doc])*
            #[must_use]
            pub fn code(&self) -> &'static str {
                match self {
                    $($cause => $code,)+
                    $($($wrapper => $inner,)+)?
                }
            }
        }
    };
}
pub(crate) use codes;

codes! {
    /// The stable code, `PL` and three digits: 01x and 02x requests, 03x and 04x uploads, 05x starts,
    /// 06x activations, 07x and 08x what an inspection finds, 09x the proxy itself, 10x frames of version 2.
    Error,
    Request(RequestError::NotJson { .. }) => "PL010",
    Request(RequestError::NotAnObject { .. }) => "PL011",
    Request(RequestError::EmptyBody { .. }) => "PL012",
    Request(RequestError::BodyTooLarge { .. }) => "PL013",
    Request(RequestError::BodyStalled { .. }) => "PL014",
    Request(RequestError::BadMember { .. }) => "PL015",
    Request(RequestError::NoCode) => "PL016",
    Request(RequestError::BadArguments) => "PL017",
    Request(RequestError::AlreadyInitialised) => "PL018",
    Request(RequestError::InitUnderWay) => "PL019",
    Request(RequestError::NotInitialised) => "PL020",
    Request(RequestError::BadBase64 { .. }) => "PL021",
    Request(RequestError::UnknownProtocol { .. }) => "PL022",
    Request(RequestError::BadVariable { .. }) => "PL023",
    Request(RequestError::BrokenBody { .. }) => "PL024",
    Request(RequestError::NotHttp { .. } | RequestError::NotOneHost { .. }) => "PL025",
    Request(RequestError::HeadTooLarge { .. }) => "PL026",
    Request(RequestError::Http2) => "PL027",
    Request(RequestError::UnmetExpectation { .. }) => "PL028",
    Request(RequestError::TransferCoding { .. }) => "PL029",
    Upload(UploadError::Compile { .. }) => "PL033",
    Upload(UploadError::ArchiveDamaged { .. }) => "PL034",
    Upload(UploadError::ArchiveWithoutExec { .. }) => "PL035",
    Upload(UploadError::ArchiveEscapes { .. } | UploadError::ArchiveDriveLetter { .. }) => "PL036",
    Upload(UploadError::ArchiveEntryKind { .. }) => "PL037",
    Upload(UploadError::ArchiveTooLarge { .. }) => "PL038",
    Upload(UploadError::ArchiveTooManyEntries { .. }) => "PL039",
    Upload(UploadError::Unwritable { .. }) => "PL040",
    Upload(UploadError::NoSuchAction { .. } | UploadError::NoSuchCommand { .. }) => "PL041",
    Upload(UploadError::DirectoryWithoutExec { .. }) => "PL042",
    Upload(UploadError::ArchiveUnsupported { .. }) => "PL043",
    Start(StartError::CannotStart { .. } | StartError::TooLarge(_)) => "PL050",
    Start(StartError::ExitedBeforeReady { .. }) => "PL051",
    Start(StartError::NotReady { .. }) => "PL052",
    Start(StartError::WrongFirstLine { .. } | StartError::NearlyHandshake { .. }) => "PL053",
    Start(StartError::UnsupportedVersion { .. }) => "PL054",
    Start(StartError::NoHandshake { .. }) => "PL055",
    Start(StartError::BadHandshake { .. }) => "PL056",
    Upload(UploadError::WrongEnvironment { .. }) => "PL057",
    Start(StartError::Prompt { .. }) => "PL059",
    Run(RunError::BadAnswer { .. }) => "PL060",
    Run(RunError::ExitedBeforeAnswer { .. }) => "PL061",
    Run(RunError::ChannelClosed { .. }) => "PL062",
    Run(RunError::AnswerTooLong { .. }) => "PL063",
    Run(RunError::TimeOut { .. }) => "PL064",
    Run(RunError::QueueFull { .. }) => "PL065",
    Proxy(ProxyError::ShuttingDown) => "PL066",
    Run(RunError::CutOff { .. }) => "PL067",
    Run(RunError::Expired) => "PL068",
    Run(RunError::CrashLoop { .. }) => "PL069",
    Proxy(ProxyError::CannotListen { .. }) => "PL090",
    Proxy(ProxyError::BadSetting { .. }) => "PL091",
    Proxy(ProxyError::System { .. }) => "PL092",
    Run(RunError::NotRestarted { .. }) => "PL093",
    Run(RunError::BadFrame { .. }) => "PL100",
    Run(RunError::Overrun { .. }) => "PL101",
    Run(RunError::FrameTooLong { .. }) => "PL102",
    Request(RequestError::MemoryFull { .. }) => "PL105",
    Run(RunError::NeverAnswered { .. }) => "PL106",
    ;
    // Each defect has its own.
    Upload(UploadError::Unusable { defects, .. }) => defects.first().expect("there is a defect").code(),
}

codes! {
    /// The stable code: 03x and 04x what it is, 07x ELF, 08x scripts.
    Defect,
    Defect::Empty => "PL030",
    Defect::Unrecognised { .. } => "PL031",
    Defect::Source { .. } => "PL032",
    Defect::Foreign(Foreign::Html | Foreign::LfsPointer | Foreign::Zeros) => "PL045",
    Defect::Foreign(_) | Defect::NotTar { .. } | Defect::Archive { .. } => "PL044",
    Defect::Encoded { .. } => "PL046",
    Defect::ByteOrderMark => "PL047",
    Defect::NotExecutable { .. } | Defect::Unreadable { .. } => "PL048",
    Defect::NoExecMount { .. } => "PL049",
    Defect::WrongMachine { .. } | Defect::OtherSystem { .. } => "PL070",
    Defect::NotProgram { .. } => "PL071",
    Defect::Damaged { .. } | Defect::EndsEarly => "PL072",
    Defect::NoLoader { .. } => "PL073",
    Defect::BadLoader { .. } => "PL074",
    Defect::NoLibraries { .. } => "PL075",
    Defect::NoVersions { .. } => "PL076",
    Defect::BadLibrary { .. } => "PL077",
    Defect::OldProcessor { .. } => "PL088",
    Defect::NoInterpreter { .. } => "PL080",
    Defect::NotOnPath { .. } => "PL081",
    Defect::CarriageReturn { .. } | Defect::CarriageReturnInArgument { .. } => "PL082",
    Defect::LineTooLong { .. } | Defect::ArgumentCut { .. } => "PL083",
    Defect::NestedTooDeep { .. } => "PL084",
    Defect::EnvWords { .. } => "PL085",
    Defect::NoInterpreterNamed => "PL086",
    Defect::RelativeInterpreter { .. } => "PL087",
    ;
    Defect::Interpreter { defect, .. } => defect.code(),
}
