# `make chat` and `make test` set everything up by themselves, in .venv; later runs find it ready.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help chat test check format bench bench-gpu page-shots mini-data mini-train mini-gpu mini-measure mini-preference \
  mini-scorecard clean

VENV := .venv
BIN := $(VENV)/bin
# Installed before anything else, so that no other package chooses the build. Any pip requirement: TORCH=some.whl
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

chat: $(VENV)/chat.ready  ## ask mini a spoken question and print its answer
	@$(BIN)/qwen2-audio chat examples/question.flac

test: $(VENV)/dev.ready  ## the tests
	$(BIN)/python -m pytest

check: $(VENV)/dev.ready  ## everything that must hold before a commit: format, lint, types, imports, dead code, tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/python -m pytest

format: $(VENV)/dev.ready  ## format the code and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/dev.ready  ## time mini, side by side with transformers
	$(BIN)/qwen2-audio bench

bench-gpu: $(VENV)/dev.ready  ## time the shape of the 7B on an NVIDIA GPU: alone, 64 streams, int4, a training step
	$(BIN)/qwen2-audio bench --random 7b --device cuda --clip 5 --clip 30 --runs 5
	$(BIN)/qwen2-audio bench --random 7b --device cuda --clip 15 --streams 64 --tokens 257 --alone --runs 1
	$(BIN)/qwen2-audio bench --random 7b --device cuda --quantize int4 --alone --clip 5 --runs 3
	$(BIN)/python benchmarks/training_step.py --random 7b --tokens 12288 --steps 6

page-shots: $(VENV)/dev.ready  ## photograph the web page into runs/page, two pictures into docs/images (wants Chromium)
	$(BIN)/python recipes/page/shots.py runs/page --readme

clean:  ## remove the environment and all caches (not runs/)
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# --- set-up: one stamp for each set of packages, made anew when pyproject.toml changes

$(VENV)/venv.ready:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "setting up $(VENV) with $$($$python --version); the first time this takes a few minutes"; \
	    $$python -m venv --clear $(VENV) && touch $@ && exit 0; \
	    echo "$$python cannot make a virtual environment; install its venv package (Debian: python3-venv)" >&2; exit 1; \
	  fi; \
	done; echo "no Python 3.11 or later found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1

$(VENV)/torch.ready: $(VENV)/venv.ready
	$(PIP) '$(TORCH)'
	@touch $@

$(VENV)/chat.ready: pyproject.toml $(VENV)/torch.ready
	$(PIP) --editable '.[mini,fast]'
	@touch $@

$(VENV)/dev.ready: pyproject.toml $(VENV)/torch.ready
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/speech.ready: pyproject.toml $(VENV)/torch.ready
	$(PIP) --editable '.[mini,fast,train,eval,speech]'
	@touch $@

# --- training mini anew; the voices also want the programs flite, espeak-ng and npm

MINI := runs/mini
export KOKORO_VOICES = $(MINI)/kokoro/package/voices
RECIPE := $(BIN)/python recipes/mini
# Sentences to read aloud, 14,001 or more: gzipped lines `id<TAB>SENTENCE`
TRANSCRIPTS ?=
# A folder with real recordings: librispeech_excerpt, esc10, emodb, each with a manifest.jsonl (see docs/mini.md)
DATA ?=
# Optional: folder and texts of recorded announcements (see recipes/mini/prompts.py)
PROMPTS ?=
PROMPT_TEXTS ?=
# Where mini-scorecard's report goes; one folder a model
RUN ?= runs/scorecard
# KEY=VALUE changes for all stages
SETTINGS ?=
PROCESSES ?= 2
# Keeps freed memory: without this glibc hands large buffers back to the system, page by page, at every step
ALLOCATOR := MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=20000000000
TRAIN = $(ALLOCATOR) OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(PROCESSES) recipes/mini/train.py

mini-data: $(MINI)/rows/sft.jsonl $(MINI)/start.safetensors  ## synthesise what mini learns from (TRANSCRIPTS=FILE, DATA=FOLDER)

mini-train: mini-data  ## take mini through its stages and put the result into the package; resumes when run again
	$(TRAIN) configs/mini/hear.yaml $(SETTINGS)
	$(TRAIN) configs/mini/pretrain.yaml $(SETTINGS)
	$(TRAIN) configs/mini/sft.yaml $(SETTINGS)
	$(TRAIN) configs/mini/mix.yaml start=$(MINI)/sft/trained.safetensors $(SETTINGS)
	mkdir -p $(MINI)/half
	$(RECIPE)/average.py $(MINI)/mix/trained.safetensors $(MINI)/mix/trained.safetensors $(MINI)/half/trained.safetensors \
	  --encoder 0.5
	$(TRAIN) configs/mini/mix.yaml start=$(MINI)/half/trained.safetensors out=$(MINI)/back encoder.learning_rate=5.0e-5 $(SETTINGS)
	$(TRAIN) configs/mini/mix.yaml start=$(MINI)/back/trained.safetensors out=$(MINI)/far encoder.learning_rate=3.0e-5 \
	  distil=1.0 misread=0.15 $(SETTINGS)
	mkdir -p $(MINI)/both
	$(RECIPE)/average.py $(MINI)/far/trained.safetensors $(MINI)/back/trained.safetensors $(MINI)/both/trained.safetensors \
	  --share 0.8 --share-of-encoder 0.35
	$(TRAIN) configs/mini/mix.yaml start=$(MINI)/both/trained.safetensors out=$(MINI)/answers encoder.learning_rate=0.0 \
	  projector.learning_rate=1.0e-4 distil=1.0 misread=0.15 $(SETTINGS)
	mkdir -p $(MINI)/ear
	$(RECIPE)/average.py $(MINI)/answers/trained.safetensors $(MINI)/answers/trained.safetensors $(MINI)/ear/trained.safetensors \
	  --encoder-from 3
	$(TRAIN) configs/mini/mix.yaml start=$(MINI)/ear/trained.safetensors out=$(MINI)/words 'encoder.layers=[3, 4, 5]' \
	  encoder.learning_rate=3.0e-5 projector.learning_rate=1.0e-4 distil=1.0 distil_states=1.0 misread=0.1 spoken_weight=0.0 \
	  $(SETTINGS)
	$(TRAIN) configs/mini/mix.yaml start=$(MINI)/words/trained.safetensors out=$(MINI)/asked encoder.learning_rate=0.0 \
	  projector.learning_rate=1.0e-4 language_model.learning_rate=4.0e-4 distil=1.0 distil_states=1.0 misread=0.1 \
	  spoken_weight=0.0 augmented=0.5 batch_tokens=500 $(SETTINGS)
	mkdir -p $(MINI)/last
	$(RECIPE)/average.py $(MINI)/asked/trained.safetensors $(MINI)/words/trained.safetensors $(MINI)/last/trained.safetensors
	test -e $(MINI)/rows/dpo.jsonl || { rm -rf $(MINI)/last/model && \
	  $(BIN)/qwen2-audio merge --model $(MINI)/base $(MINI)/last/trained.safetensors $(MINI)/last/model && \
	  $(RECIPE)/preferences.py $(MINI)/last/model '$(DATA)/esc10' $(MINI)/rows/dpo.jsonl; }
	$(TRAIN) configs/mini/dpo.yaml $(SETTINGS)
	cp $(MINI)/dpo/trained.safetensors src/qwen2_audio/checkpoints/mini.safetensors

mini-gpu:  ## the same on one GPU, longer; then report how well the result listens
	$(MAKE) mini-train PROCESSES=1 SETTINGS='device=cuda batch_tokens=16384 workers=12 minutes=12'
	$(MAKE) mini-measure

mini-measure: | $(VENV)/speech.ready  ## how well mini listens: the figures of docs/mini.md (DATA=FOLDER)
	@test -n '$(DATA)' || { echo 'say where the recordings are: make mini-measure DATA=FOLDER' >&2; exit 2; }
	$(RECIPE)/measure.py --ask --read '$(DATA)/librispeech_excerpt' --sounds '$(DATA)/esc10' --emotions '$(DATA)/emodb' \
	  --faithful '$(DATA)/esc10'

mini-preference: | $(VENV)/speech.ready  ## contradicting answers before and after mini's last stage (DATA=FOLDER; after mini-train)
	@test -n '$(DATA)' || { echo 'say where the recordings are: make mini-preference DATA=FOLDER' >&2; exit 2; }
	$(RECIPE)/measure.py --model $(MINI)/last/model mini --faithful '$(DATA)/esc10'

# The evaluation reads one folder: links to the recordings, and the questions that are synthesised
SCORECARD := $(MINI)/scorecard

mini-scorecard: | $(VENV)/speech.ready  ## mini's report: speech, sounds, emotions, digits, spoken questions (DATA=FOLDER)
	@test -n '$(DATA)' || { echo 'say where the recordings are: make mini-scorecard DATA=FOLDER' >&2; exit 2; }
	$(MAKE) $(SCORECARD)/spoken_questions/manifest.jsonl
	for set in librispeech_excerpt esc10 emodb fsdd; do \
	  ln -sfn "$$(realpath '$(DATA)')/$$set" $(SCORECARD)/$$set; done
	$(BIN)/qwen2-audio evaluate scorecard --data $(SCORECARD) --out '$(RUN)'

$(SCORECARD)/spoken_questions/manifest.jsonl: recipes/mini/spoken_questions.py recipes/mini/test_questions.txt | $(VENV)/speech.ready
	$(RECIPE)/spoken_questions.py $(SCORECARD)

$(MINI)/base: | $(VENV)/speech.ready
	@mkdir -p $(MINI)
	ln -sfn "$$($(BIN)/python -c 'import sys; from qwen2_audio.checkpoints.hub import find_checkpoint; \
	  print(find_checkpoint("mini-base", say=lambda line: print(line, file=sys.stderr)))')" $@

$(MINI)/read.jsonl: | $(VENV)/speech.ready
	@test -n '$(TRANSCRIPTS)' || { echo 'say what to read aloud: make mini-data TRANSCRIPTS=transcripts.tsv.gz' >&2; exit 2; }
	@mkdir -p $(MINI)
	$(RECIPE)/reading_texts.py '$(TRANSCRIPTS)' $@

# Many voices, but slow ones: two cores speak only a few seconds a second
$(MINI)/many.jsonl: | $(MINI)/kokoro $(VENV)/speech.ready
	@test -n '$(TRANSCRIPTS)' || { echo 'say what to read aloud: make mini-data TRANSCRIPTS=transcripts.tsv.gz' >&2; exit 2; }
	$(RECIPE)/reading_texts.py '$(TRANSCRIPTS)' $@ --skip 14000 --count 2000 --kokoro

$(MINI)/kokoro:
	@mkdir -p $@.part
	cd $@.part && tar -xzf "$$(npm pack --silent kokoro-js@1.2.1)" package/voices
	mv $@.part $@

$(MINI)/ask.jsonl: | $(MINI)/base
	$(RECIPE)/question_texts.py $(MINI)/base $@

$(MINI)/%/manifest.jsonl: $(MINI)/%.jsonl
	OMP_NUM_THREADS=1 $(RECIPE)/synthesise.py $< $(@D) --processes $(PROCESSES)

# Cutting real recordings needs a model that hears them already: the mini of this repository
$(MINI)/real/manifest.jsonl: | $(VENV)/speech.ready
	@test -n '$(DATA)' || { echo 'say where the real recordings are: make mini-data DATA=FOLDER' >&2; exit 2; }
	$(RECIPE)/cut_real.py mini '$(DATA)/librispeech_excerpt' $(@D)

$(MINI)/prompts/manifest.jsonl: | $(VENV)/speech.ready
	@mkdir -p $(@D)
	$(if $(PROMPTS),$(RECIPE)/prompts.py '$(PROMPTS)' '$(PROMPT_TEXTS)' $(@D),touch $@)

$(MINI)/rows/sft.jsonl: $(addprefix $(MINI)/,read/manifest.jsonl many/manifest.jsonl ask/manifest.jsonl real/manifest.jsonl \
    prompts/manifest.jsonl)
	$(RECIPE)/conversations.py $(@D) --read $(MINI)/read --many $(MINI)/many --ask $(MINI)/ask --real $(MINI)/real \
	  --prompts $(MINI)/prompts --data '$(DATA)'

$(MINI)/start.safetensors: $(MINI)/read/manifest.jsonl | $(MINI)/base
	$(RECIPE)/closed_form.py $(MINI)/base $(MINI)/read $@
