#!/usr/bin/env bash
# Fine-tune on your own data: with LoRA or with all parameters, on a CPU, a GPU, many GPUs, many machines.
#
#   cd finetune && bash run.sh --lora --train_file train.jsonl --eval_file eval.jsonl
#
#   --train_file FILE     rows to learn from (docs/training.md says which shapes are read)
#   --eval_file FILE      rows to measure on while it learns
#   --lora                low-rank corrections only (configs/lora.yaml); without it all parameters (configs/sft.yaml)
#   --model NAME          the model to start from: a name or a folder; default: mini
#   --output_dir DIR      where everything goes; default: runs/finetune below the repository
#   --config FILE         another configuration; name its --engine, too
#   --engine NAME         for several processes, a file of configs/accelerate: ddp (with LoRA the default), fsdp2,
#                         deepspeed_z1, deepspeed_z2, deepspeed_z3 (without LoRA the default), ...
#   --resume auto|never   go on with the run in the output folder (the default), or refuse it
#   KEY=VALUE ...         anything else of the configuration: steps=500 language_model.rank=64 evaluation.metric=wer
#
# Environment: GPUS_PER_NODE (default: those that are here, one process without any), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT;
# PYTHON (default: the one of .venv).
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() { echo "run.sh: $1; see the head of $ROOT/finetune/run.sh" >&2; exit 2; }

lora= config= engine= train_file= model=mini output="$ROOT/runs/finetune"
changes=()
while (($#)); do
  case "$1" in
    --lora) lora=1; shift; continue ;;
    --train_file | --eval_file | --model | --model_name_or_path | --output_dir | --config | --engine | --resume)
      (($# > 1)) || fail "$1 needs a value" ;;
    --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
    *=*) changes+=("$1"); shift; continue ;;
    *) fail "unknown argument $1" ;;
  esac
  case "$1" in
    --train_file) train_file="$2" ;;
    --eval_file) changes=("evaluation.data=$2" ${changes[@]+"${changes[@]}"}) ;;
    --model | --model_name_or_path) model="$2" ;;
    --output_dir) output="$2" ;;
    --config) config="$2" ;;
    --engine) engine="$2" ;;
    --resume) changes+=("resume=$2") ;;
  esac
  shift 2
done
[[ -n "$train_file" ]] || fail "give the rows to learn from: --train_file FILE"
[[ -z "$lora" || -z "$config" ]] || fail "--lora is configs/lora.yaml, --config another one; give one of them"
config="${config:-$ROOT/configs/$([[ -n "$lora" ]] && echo lora || echo sft).yaml}"
engine="${engine:-$([[ -n "$lora" ]] && echo ddp || echo deepspeed_z3)}"
[[ -f "$ROOT/configs/accelerate/$engine.yaml" ]] || fail "unknown engine $engine"

if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ -x "$ROOT/.venv/bin/python" ]] && PYTHON="$ROOT/.venv/bin/python"
fi
"$PYTHON" -c 'import qwen2_audio, yaml' 2>/dev/null \
  || fail "$PYTHON lacks this package; in $ROOT: pip install -e '.[mini,train]', or name another Python: PYTHON=..."

here="$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null || echo 0)"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"  # time to save a large model when stopped
each="${GPUS_PER_NODE:-$((here > 0 ? here : 1))}"
nodes="${NNODES:-1}"
command=(-m qwen2_audio.cli.main train sft --config "$config" "model=$model" "data=$train_file" "out=$output"
  ${changes[@]+"${changes[@]}"})
if ((each * nodes > 1)) || [[ "$engine" == deepspeed* && "$here" -gt 0 ]]; then
  [[ "$engine" != deepspeed* ]] || "$PYTHON" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("deepspeed"))' \
    || fail "the engine $engine needs DeepSpeed: pip install -e '.[deepspeed]', or name another: --engine fsdp2"
  command=(-m accelerate.commands.launch --config_file "$ROOT/configs/accelerate/$engine.yaml"
    --num_processes "$((each * nodes))" --num_machines "$nodes" --machine_rank "${NODE_RANK:-0}"
    --main_process_ip "${MASTER_ADDR:-127.0.0.1}" --main_process_port "${MASTER_PORT:-29500}" "${command[@]}")
fi
exec "$PYTHON" "${command[@]}"
