"""Transformers opens a torch folder."""

import torch
import transformers
from answering import FOLDER, answer

model = transformers.AutoModelForSequenceClassification.from_pretrained(FOLDER).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
with torch.inference_mode():
    answer(
        lambda text: model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0],
        labels,
        f"transformers {transformers.__version__}",
    )
