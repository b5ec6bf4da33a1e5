"""Small GGUF files of Llama models, written as llama.cpp's own converter writes them."""

import gguf

_OF_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model, tokens, path):
    """Of a LlamaForCausalLM, and the byte-level tokens of its vocabulary, of one or two letters."""
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([" ".join(token) for token in tokens if len(token) == 2])
    for name, weights in model.state_dict().items():
        module = name.removesuffix(".weight")
        data = weights.float().numpy()
        if module in ("model.embed_tokens", "model.norm", "lm_head"):
            ours = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[module]
        else:
            _, _, layer, inner = module.split(".", 3)
            kind = _OF_A_LAYER[inner]
            ours = f"blk.{layer}.{kind}"
            if kind in heads:  # llama.cpp turns neighbouring channels, transformers those half a head apart
                data = data.reshape(heads[kind], 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        writer.add_tensor(f"{ours}.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
