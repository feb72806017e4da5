"""Options of every command but ``fit``: wrong, out of range, misspelt, or in each other's way."""

from __future__ import annotations

from tests.reliability.bad_input import Case, text

_GENERATE = "generate --checkpoint {student} --device cpu --output out/s.jsonl"
_EVALUATE = "evaluate --evaluator {evaluator} --device cpu --output out/e.json"
_EXPORT = "export --checkpoint {teacher} --output out"
_INSPECT = "inspect {teacher} --device cpu"
_TOYS = "bench toys --quick --json out/t.json"
_ORACLE = "bench oracle --quick --json out/o.json"
_SPEED = "bench speed --quick --json out/s.json"
_HELP = "idlm generate --help"

GENERATE = [
    Case("steps of zero", f"{_GENERATE} --steps 0", ("steps is 0", "at least 1")),
    Case("negative steps", f"{_GENERATE} --steps -3", ("steps is -3", "at least 1")),
    Case("steps as a word", f"{_GENERATE} --steps many", ("--steps", "'many'", _HELP)),
    Case("steps as a fraction", f"{_GENERATE} --steps 1.5", ("--steps", "'1.5'", _HELP)),
    Case("absurd steps", f"{_GENERATE} --steps 1{'0' * 15}", ("steps is 10", "at most 1048576")),
    Case("a number of 5000 digits", f"{_GENERATE} --steps {{digits}}", ("--steps", "999", _HELP)),
    Case("no value", f"{_GENERATE} --steps", ("--steps", "expected one argument", _HELP)),
    Case("length of zero", f"{_GENERATE} --length 0", ("length is 0", "at least 1")),
    Case("length over the context", f"{_GENERATE} --length 33", ("33", "32", "give a stride")),
    Case(
        "an absurd length",
        f"{_GENERATE} --length 1{'0' * 15} --stride 8",
        ("length is 1000000000000000", "at most 17179869184 tokens"),
    ),
    Case(
        "a stride over the context",
        f"{_GENERATE} --length 64 --stride 40",
        ("stride is 40", "1 to 32"),
    ),
    Case("no samples", f"{_GENERATE} --num-samples 0", ("num_samples is 0", "at least 1")),
    Case(
        "absurdly many samples",
        f"{_GENERATE} --num-samples 1{'0' * 12}",
        ("num_samples is 1000000000000", "at most 100000000"),
    ),
    Case("a negative seed", f"{_GENERATE} --seed -1", ("seed is -1", "at least 0")),
    Case("a seed of 65 bits", f"{_GENERATE} --seed {1 << 64}", (str(1 << 64), "below 2^64")),
    Case("temperature nan", f"{_GENERATE} --temperature nan", ("temperature is nan", "above 0")),
    Case("temperature inf", f"{_GENERATE} --temperature inf", ("temperature is inf", "finite")),
    Case("a negative temperature", f"{_GENERATE} --temperature -1", ("is -1.0", "above 0")),
    Case("top-p above one", f"{_GENERATE} --top-p 1.5", ("top_p is 1.5", "(0, 1]")),
    Case("top-p nan", f"{_GENERATE} --top-p nan", ("top_p is nan", "(0, 1]")),
    Case("a batch of none", f"{_GENERATE} --batch-size 0", ("batch_size is 0", "or left out")),
    Case("an unknown order", f"{_GENERATE} --order left", ("'left'", "random", "margin")),
    Case(
        "an order of a process without one",
        "generate --checkpoint {uniform} --output out/s.jsonl --order margin",
        ("order is 'margin'", "leave order out"),
    ),
    Case("a tail of another process", f"{_GENERATE} --tail greedy", ("'greedy'", "leave tail out")),
    Case("a misspelt option", f"{_GENERATE} --step 4", ("--step 4", "did you mean --steps?")),
    Case("an option like no other", f"{_GENERATE} --xyzzy", ("--xyzzy", _HELP)),
    Case("a word too many", f"{_GENERATE} extra", ("extra", _HELP)),
    Case("a line break in an option", f"{_GENERATE} '--ste\nps' 4", ("--ste ps", _HELP)),
    Case("an escape sequence in an option", f"{_GENERATE} '\x1b[31mred'", ("\\x1b[31mred", _HELP)),
    Case("an unknown dtype", f"{_GENERATE} --dtype int8", ("'int8'", "float32")),
    Case(
        "an unknown device",
        "generate --checkpoint {student} --device abacus --output out/s.jsonl",
        ("device 'abacus' is unknown", "cpu, cuda or cuda:N"),
    ),
    Case("a stop word", f"{_GENERATE} --stop end", ("--stop is end", "eos, or token ids")),
    Case("a stop id beyond the vocabulary", f"{_GENERATE} --stop 999", ("999", "0 to 299")),
    Case("a stop id of 5000 digits", f"{_GENERATE} --stop {{digits}}", ("999", "token ids")),
    Case("stops in two lists", f"{_GENERATE} --stop 1 --stop 2", ("--stop is given twice", "one")),
    Case("prompt and infill", f"{_GENERATE} --prompt a --infill b", ("not allowed with", _HELP)),
    Case("an empty prompt", f"{_GENERATE} --prompt ''", ("--prompt is empty", "leave it out")),
    Case("an infill without a slot", f"{_GENERATE} --infill a", ("nothing to write", "[MASK:12]")),
    Case("a slot of none", f"{_GENERATE} --infill 'a[MASK:0]'", ("[MASK:0]", "[MASK:12]")),
    Case("a slot of a word", f"{_GENERATE} --infill 'a[MASK:two]'", ("[MASK:two]", "[MASK:12]")),
    Case("a negative slot", f"{_GENERATE} --infill 'a[MASK:-1]'", ("[MASK:-1]", "[MASK:12]")),
    Case("an absurd slot", f"{_GENERATE} --infill 'a[MASK:{{digits}}]'", ("999", "1000000")),
    Case("a slot over the context", f"{_GENERATE} --infill 'a[MASK:99]'", ("100", "32 tokens")),
    Case(
        "a length for an infill",
        f"{_GENERATE} --infill 'a[MASK]' --length 8",
        ("--length is 8", "leave --length out"),
    ),
    Case(
        "a prompt as long as the text", f"{_GENERATE} --length 2 --prompt 'a b'", ("2", "shorten")
    ),
    Case(
        "watching faster than time",
        f"{_GENERATE} --watch --watch-delay -1",
        ("--watch-delay is -1.0", "0 to 60"),
    ),
    Case(
        "watching for ages",
        f"{_GENERATE} --watch --watch-delay 1e300",
        ("--watch-delay is 1e+300", "0 to 60"),
    ),
    Case("a delay and no watching", f"{_GENERATE} --watch-delay 1", ("--watch-delay", "--watch")),
    Case("watching and a bar", f"{_GENERATE} --watch --progress", ("--progress", "give one")),
    Case("watching without text", f"{_GENERATE} --watch --no-text", ("--no-text", "give one")),
    Case("raw weights of a folder", f"{_GENERATE} --raw", ("raw", "leave raw out")),
    Case(
        "a revision of a folder", f"{_GENERATE} --revision v1", ("'v1'", "leave the revision out")
    ),
    Case(
        "a name of 5000 letters",
        "generate --checkpoint {long} --output out/s.jsonl",
        ("xxx", "too long", "give a folder"),
    ),
    Case(
        "an output of 5000 letters",
        "generate --checkpoint {student} --output out/{long}",
        ("xxx", "too long", "name another"),
    ),
    Case(
        "an output that is a folder",
        "generate --checkpoint {student} --output {here}",
        ("--output", "is a folder", "name a file"),
    ),
    Case(
        "an output below a file",
        "generate --checkpoint {student} --output {here}/f/s.jsonl",
        ("--output", "is a file, not a folder"),
        text("f", "here first"),
    ),
    Case(
        "a hub id that cannot be reached",
        "generate --checkpoint nobody/nothing --output out/s.jsonl",
        ("'nobody/nothing'", "give the path of a local folder"),
    ),
    Case(
        "a hub id that climbs",
        "generate --checkpoint ../nothing --output out/s.jsonl",
        ("'../nothing'", "give a folder"),
    ),
]

EVALUATE = [
    Case("nothing to measure", _EVALUATE, ("--samples", "--checkpoint")),
    Case(
        "both to measure",
        f"{_EVALUATE} --samples {{samples}} --checkpoint {{student}}",
        ("--samples", "--checkpoint"),
    ),
    Case(
        "samples in two lists",
        f"{_EVALUATE} --samples {{samples}} --samples {{tokens}}",
        ("--samples is given twice", "behind one"),
    ),
    Case("no batch", f"{_EVALUATE} --samples {{samples}} --batch-size 0", ("is 0", "1 or more")),
    Case("one token", f"{_EVALUATE} --samples {{samples}} --max-length 1", ("is 1", "2 or more")),
    Case("raw samples", f"{_EVALUATE} --samples {{samples}} --raw", ("--raw", "leave it out")),
    Case(
        "samples that are not there",
        f"{_EVALUATE} --samples nowhere.jsonl",
        ("'nowhere.jsonl'", "idlm generate --output"),
    ),
    Case(
        "tokens without text",
        f"{_EVALUATE} --samples {{tokens}}",
        ("tokens.jsonl", "--no-retokenize"),
    ),
    Case(
        "tokens that the evaluator lacks",
        f"{_EVALUATE} --samples {{tokens}} --no-retokenize",
        ("900", "knows 0 to 299"),
    ),
    Case(
        "an evaluator that is none",
        "evaluate --samples {samples} --evaluator {here}",
        ("here", "give a folder"),
    ),
    Case(
        "a denoiser as evaluator",
        "evaluate --samples {samples} --evaluator {teacher}",
        ("teacher", "causal language model"),
    ),
    Case(
        "an evaluator with too long a name",
        "evaluate --samples {samples} --evaluator {long}",
        ("xxx", "too long", "name another"),
    ),
    Case(
        "an unknown device to evaluate on",
        "evaluate --samples {samples} --evaluator {evaluator} --device abacus",
        ("abacus", "use cpu"),
    ),
    Case(
        "a reference that is not there",
        f"{_EVALUATE} --samples {{samples}} --reference nowhere.txt",
        ("'nowhere.txt'", "give a path that exists"),
    ),
    Case(
        "a misspelt corpus as reference",
        f"{_EVALUATE} --samples {{samples}} --reference python_dosc",
        ("'python_dosc'", "did you mean the recipe 'python_docs'"),
    ),
    Case(
        "a reference too short for a row",
        f"{_EVALUATE} --samples {{samples}} --reference {{here}}/short.txt",
        ("empty", "give more text"),
        text("short.txt", "a"),
    ),
    Case(
        "steps of zero to evaluate",
        f"{_EVALUATE} --checkpoint {{student}} --steps 0",
        ("steps is 0", "at least 1"),
    ),
    Case(
        "an evaluation written over a folder",
        "evaluate --samples {samples} --evaluator {evaluator} --output {here}",
        ("--output", "name a file"),
    ),
]

EXPORT = [
    Case("no output", "export --checkpoint {teacher}", ("--output", "idlm export --help")),
    Case(
        "an unknown layout", f"{_EXPORT} --layout onnx", ("'onnx'", "'mdlm'", "idlm export --help")
    ),
    Case("a layout of another process", f"{_EXPORT} --layout duo", ("absorbing", "layout")),
    Case(
        "a latent in a published layout",
        "export --checkpoint {student} --output out --layout mdlm",
        ("latent", "--latent zero"),
    ),
    Case(
        "a tokenizer of more tokens than the network",
        "export --checkpoint {other} --tokenizer {teacher} --output out",
        ("300 tokens", "280", "use the tokenizer"),
    ),
    Case("private and not pushed", f"{_EXPORT} --private", ("--private", "give both")),
    Case("a repository without owner", f"{_EXPORT} --push name", ("'name'", "owner/name")),
    Case("a repository that climbs", f"{_EXPORT} --push ../name", ("'../name'", "owner/name")),
    Case("metrics that are not there", f"{_EXPORT} --metrics m.json", ("m.json", "check the path")),
    Case(
        "metrics of something else",
        f"{_EXPORT} --metrics {{here}}/m.json",
        ("m.json", "idlm evaluate --output"),
        text("m.json", '{"results": 3}'),
    ),
    Case(
        "metrics nested a hundred thousand deep",
        f"{_EXPORT} --metrics {{here}}/m.json",
        ("m.json", "idlm evaluate --output"),
        text("m.json", "[" * 100_000),
    ),
    Case(
        "an export into a folder of letters",
        "export --checkpoint {teacher} --output {here}",
        ("no config.json", "name a new or empty folder"),
        text("letter.txt", "dear"),
    ),
    Case(
        "an export over a file",
        "export --checkpoint {teacher} --output {here}/f",
        ("is a file", "name a folder"),
        text("f", "here first"),
    ),
]

INSPECT = [
    Case("nothing to inspect", "inspect", ("X", "idlm inspect --help")),
    Case("no rows", f"{_INSPECT} --rows 0", ("--rows is 0", "1 or more")),
    Case("rows as a word", f"{_INSPECT} --rows all", ("'all'", "idlm inspect --help")),
    Case("a negative length", f"{_INSPECT} --length -5", ("--length is -5", "1 or more")),
    Case("a length over the context", f"{_INSPECT} --length 33", ("33", "32 tokens", "at most")),
    Case("a negative seed to inspect", f"{_INSPECT} --seed -1", ("--seed is -1", "0 or more")),
    Case("a misspelt option of inspect", f"{_INSPECT} --row 3", ("--row", "did you mean --rows?")),
    Case(
        "a checkpoint that is a file",
        "inspect {corpus}",
        ("corpus.txt", "give a folder with config.json"),
    ),
    Case(
        "a text that is a folder of nothing",
        f"{_INSPECT} --text {{here}}",
        ("here", "no .txt and no .jsonl file", "give one"),
    ),
]

DEMO = [
    Case("more checkpoints than columns", "demo a b c d e", ("5 checkpoints", "room for 4")),
    Case("a checkpoint named twice", "demo a a", ("'a' is named twice", "each once")),
    Case("port 0", "demo --port 0", ("--port is 0", "from 1 to 65535")),
    Case("a port too high", "demo --port 70000", ("--port is 70000", "from 1 to 65535")),
    Case("a port as a word", "demo --port http", ("'http'", "idlm demo --help")),
    Case("a misspelt option of demo", "demo --prot 1", ("--prot", "did you mean --port?")),
]

REST = [
    Case("a command that is none", "generat", ("'generat'", "did you mean `idlm generate`?")),
    Case("an option before the command", "--steps 3 generate", ("--steps", "idlm COMMAND")),
    Case("a negative seed of quickstart", "quickstart --seed -1", ("--seed is -1", "0 ...")),
    Case("a misspelt option of quickstart", "quickstart --sede 1", ("--sede", "--seed?")),
    Case(
        "quickstart over a file",
        "quickstart --output {here}/f",
        ("--output", "name a folder"),
        text("f", "here first"),
    ),
    Case("no seed that toys can have", f"{_TOYS} --seed -1", ("--seed is -1", "0 ...")),
    Case("a bench that is none", "bench toy --json out/t.json", ("'toy'", "toys")),
    Case("no bench", "bench", ("toys|oracle|speed", "idlm bench --help")),
    Case("toys without a file", "bench toys", ("--json", "idlm bench toys --help")),
    Case("an unknown toy", f"{_TOYS} --dataset mooons", ("mooons", "choose")),
    Case("an unknown method of toys", f"{_TOYS} --method idml", ("idml", "did you mean 'idlm'?")),
    Case("too few bins", f"{_TOYS} --bins 1", ("--bins is 1", "at least 4")),
    Case("absurdly many bins", f"{_TOYS} --bins 1000000", ("--bins is 1000000", "at most 1024")),
    Case("a factor that is nan", f"{_TOYS} --longer nan", ("--longer is nan", "above 0")),
    Case("a figure that is no PNG", f"{_TOYS} --figure out/f.pdf", ("f.pdf", "ends in .png")),
    Case(
        "a latent for all methods", f"{_TOYS} --latent 3", ("--latent is 3", "leave --latent out")
    ),
    Case("no jobs", f"{_TOYS} --jobs 0", ("--jobs is 0", "at least 1")),
    Case("absurdly many jobs", f"{_ORACLE} --jobs 1000000000", ("--jobs is 1000", "at most 1024")),
    Case("a misspelt option of toys", f"{_TOYS} --dataste x", ("--dataste", "--dataset?")),
    Case("seeds in two lists", f"{_TOYS} --seed 1 --seed 2", ("--seed is given twice", "one")),
    Case(
        "records that are no list",
        "bench toys --json {here}/t.json",
        ("t.json", "name another"),
        text("t.json", "{}"),
    ),
    Case(
        "records that are binary",
        "bench oracle --json {here}/t.json",
        ("t.json", "name another"),
        text("t.json", b"\x80\x81\x00"),
    ),
    Case("an unknown method of oracle", f"{_ORACLE} --method x", ("'x'", "choose")),
    Case("one text to score", f"{_ORACLE} --samples 1", ("--samples is 1", "at least 2")),
    Case(
        "absurdly long training",
        f"{_ORACLE} --teacher-updates 1{'0' * 30}",
        ("--teacher-updates is 10", "at most 10000000"),
    ),
    Case("an unknown case of speed", f"{_SPEED} --case start", ("'start'", "startup")),
    Case("no threads", f"{_SPEED} --threads 0", ("--threads is 0", "at least 1")),
    Case("absurdly many threads", f"{_SPEED} --threads 1000000", ("1000000", "at most 1024")),
    Case("a folder for records", "bench speed --json {here}", ("--json", "name a file")),
]

OPTIONS = [*GENERATE, *EVALUATE, *EXPORT, *INSPECT, *DEMO, *REST]
