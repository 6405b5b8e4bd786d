"""Everything that is not ComfyUI's public API and that the pack relies on. tests/turbo_core/host/test_host_contract.py
checks it.

A new ComfyUI in seconds: `python dev.py test tests/turbo_core/host/test_host_contract.py --comfyui DIR`. A failure
names the entry that changed: read the change, adapt the pack, then write the new form here beside the old one. The uses
themselves (names, how they are called, overridden methods, attributes, nodes) are collected from the pack's sources
(`host_uses`), so nothing can be missing here. It is one list on purpose, and longer than other files: whoever adapts
the pack to a new ComfyUI reads it from top to bottom.
"""

HOSTS = ("0.30.0", "0.34")  # the second: 783545f6 of 22 August 2026, which still calls itself 0.33.0

# Versioned interfaces that ComfyUI keeps stable for packs. Of these only that a name exists and takes our arguments is
# checked.
PUBLIC = ("comfy_api.latest", "folder_paths", "node_helpers")
# Classes made to be subclassed: what a node overrides of them is its own.
INTERFACES = ("comfy_api.latest._io", "comfy_api.latest.ComfyExtension", "comfy_api.latest.ComfyAPI")

# Name: what the pack relies on, beyond that it exists and takes the arguments that the pack's calls pass.
NAMES = {
    "comfy.cli_args.__file__": "in ComfyUI's folder/comfy",
    "comfy.cli_args.args": "a namespace that other ranks are given whole",
    "comfy.cli_args.args.cpu": "started with --cpu",
    "comfy.conds.CONDRegular": "base of CONDCamera; process_cond is given batch_size and maybe area",
    "comfy.hooks.EnumHookMode.MinVram": "the mode of CFGGuider.sample for one group of hooks",
    "comfy.ldm.modules.attention.optimized_attention": "q, k, v [B, L, dim] -> [B, L, dim]; chosen at import",
    "comfy.ldm.wan.model.Head": "base of TurboHead",
    "comfy.ldm.wan.model.WanAttentionBlock": "base of TurboBlock; positional arguments up to eps",
    "comfy.ldm.wan.model.VaceWanAttentionBlock": "base of TurboVaceBlock; its forward calls that of the next class",
    "comfy.ldm.wan.model.WanI2VCrossAttention": "the cross-attention of blocks made as i2v_cross_attn",
    "comfy.ldm.wan.model.WanModel": "base of TurboWanModel; makes its blocks in its constructor",
    "comfy.ldm.wan.model.WanSelfAttention": "base of TurboSelfAttention",
    "comfy.ldm.wan.model.WanT2VCrossAttention": "x, context and the tokens of an image -> x; nothing but its forward",
    "comfy.ldm.wan.model.repeat_e": "repeats [B, frames, dim] over the tokens of each frame",
    "comfy.ldm.wan.vae.AttentionBlock": "layer of the decoder, called with x alone",
    "comfy.ldm.wan.vae.CausalConv3d": "(x, the frames before or None); its base is a Conv3d without causal padding",
    "comfy.ldm.wan.vae.Decoder3d": "what wan_decoder.py computes",
    "comfy.ldm.wan.vae.RMS_norm": "over channels, by torch.nn.functional.normalize",
    "comfy.ldm.wan.vae.Resample": "layer of the decoder; resample takes frames [B * T, C, h, w]",
    "comfy.ldm.wan.vae.ResidualBlock": "layer of the decoder",
    "comfy.ldm.wan.vae.WanVAE": "type of first_stage_model that vae_chunks.py takes apart",
    "comfy.ldm.wan.vae.count_cache_layers": "length of the decoder's feat_cache",
    "comfy.ldm.wan.vae2_2.WanVAE": "type of first_stage_model that vae_chunks.py takes apart",
    "comfy.ldm.wan.vae2_2.count_conv3d": "length of the decoder's feat_cache",
    "comfy.ldm.wan.vae2_2.unpatchify": "[B, 12, t, h, w] -> [B, 3, t, 2h, 2w]",
    "comfy.model_base.BaseModel": "makes the network of the class unet_model, which Wan's classes name by keyword",
    "comfy.model_base.WAN21": "base of TurboWAN",
    "comfy.model_detection.model_config_from_unet": "a Wan config that get_model is not asked for",
    "comfy.model_management.cast_to": "float32 copy of a parameter on a device",
    "comfy.model_management.cuda_device_context": "a context manager; nothing on other devices",
    "comfy.model_management.current_loaded_models": "a list of LoadedModel, whose `model` is a weak reference",
    "comfy.model_management.dtype_size": "bytes",
    "comfy.model_management.get_free_memory": "bytes of a device",
    "comfy.model_management.get_torch_device": "the compute device",
    "comfy.model_management.get_torch_device_name": "for people",
    "comfy.model_management.get_total_memory": "bytes of a device",
    "comfy.model_management.intermediate_device": "where nodes leave tensors",
    "comfy.model_management.is_device_cpu": "of a torch.device",
    "comfy.model_management.is_oom": "of an exception",
    "comfy.model_management.load_models_gpu": "makes room for memory_required bytes beside the models",
    "comfy.model_management.should_use_bf16": "of a device",
    "comfy.model_management.should_use_fp16": "as text_encoder_device asks it",
    "comfy.model_management.soft_empty_cache": "without arguments",
    "comfy.model_management.text_encoder_device": "the CPU where vram_state is LOW_VRAM or NO_VRAM",
    "comfy.model_management.throw_exception_if_processing_interrupted": "raises a BaseException",
    "comfy.model_management.unload_all_models": "after out of memory on another rank",
    "comfy.model_management.unload_model_and_clones": "off the device, on another rank",
    "comfy.model_management.unet_offload_device": "where weights rest",
    "comfy.model_management.vram_state.name": "LOW_VRAM for --lowvram, NO_VRAM for --novram",
    "comfy.model_sampling.CONST": "base of RCMSampling: noise scaling and denoising of flow models",
    "comfy.model_sampling.ModelSamplingDiscreteFlow": "base of RCMSampling; set_parameters fills its table by `sigma`",
    "comfy.model_patcher.CoreModelPatcher": "rebound by main.py at startup: looked up at each call",
    "comfy.model_patcher.LowVramPatch": "(key, patches); called with a weight it returns the patched one",
    "comfy.model_patcher.ModelPatcher": "the legacy patcher, and the type in annotations",
    "comfy.model_patcher.create_model_options_clone": "copies nested dictionaries and lists",
    "comfy.model_prefetch.make_prefetch_queue": "None without dynamic VRAM",
    "comfy.model_prefetch.prefetch_queue_pop": "before each block, and with None after the last",
    "comfy.ops.cast_bias_weight": "(weight, bias, state) with offloadable=True; the state goes to uncast_bias_weight",
    "comfy.ops.manual_cast": "operations that cast weights to the type of their input",
    "comfy.ops.manual_cast.Linear": "a linear of these; the matrices of a LoRA beside a layer",
    "comfy.ops.disable_weight_init": "operations whose layers keep uninitialized tensors",
    "comfy.ops.mixed_precision_ops": "operations whose Linear is the base of the quantized linears",
    "comfy.ops.run_every_op": "raises on an interrupt; before each operation that fetches its own weight",
    "comfy.ops.uncast_bias_weight": "after each cast_bias_weight",
    "comfy.patcher_extension.CallbacksMP.ON_DEEPCLONE_MULTIGPU": "(patcher, copy on another device)",
    "comfy.patcher_extension.CallbacksMP.ON_MATCH_MULTIGPU_CLONES": "(patcher, copy on another device)",
    "comfy.patcher_extension.CallbacksMP.ON_DETACH": "(patcher, unpatch_all), after a model is off the device",
    "comfy.patcher_extension.CallbacksMP.ON_LOAD": "(patcher, device, lowvram_model_memory, force_patch_weights, "
    "full_load)",
    "comfy.patcher_extension.CallbacksMP.ON_REGISTER_ALL_HOOK_PATCHES": "(patcher, hooks, target_dict, "
    "model_options, registered)",
    "comfy.patcher_extension.WrapperExecutor.new_class_executor": "(function, object, wrappers).execute(...)",
    "comfy.patcher_extension.WrappersMP.APPLY_MODEL": "TorchCompileModel's is under the key torch.compile",
    "comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL": "wraps a call of the network, with its arguments",
    "comfy.patcher_extension.WrappersMP.OUTER_SAMPLE": "wraps a whole run",
    "comfy.patcher_extension.WrappersMP.PREDICT_NOISE": "wraps each prediction",
    "comfy.patcher_extension.get_all_wrappers": "of model options",
    "comfy.quant_ops.QUANT_ALGOS.setdefault": "a dictionary; format: storage_t, parameters, comfy_tensor_layout, "
    "quantize_input",
    "comfy.quant_ops.QuantizedTensor": "(codes, layout name, params); comfy_kitchen's",
    "comfy.sampler_helpers.cleanup_models": "undoes prepare_sampling",
    "comfy.sampler_helpers.prepare_model_patcher": "registers the conditioning's hooks",
    "comfy.sampler_helpers.prepare_sampling": "third of its result: the models loaded along",
    "comfy.samplers.CFGGuider": "base of ExpertGuider",
    "comfy.samplers.KSAMPLER": "(function, extra options)",
    "comfy.samplers.cast_to_load_options": "moves what hooks bring",
    "comfy.samplers.filter_registered_hooks_on_conds": "as in CFGGuider.sample",
    "comfy.samplers.get_total_hook_groups_in_conds": "as in CFGGuider.sample",
    "comfy.samplers.preprocess_conds_hooks": "as in CFGGuider.sample",
    "comfy.samplers.process_conds": "as in CFGGuider.inner_sample",
    "comfy.samplers.sampling_function": "as in CFGGuider.predict_noise",
    "comfy.sd.CLIP": "in annotations",
    "comfy.sd.CLIPType.WAN": "CLIPLoader's type wan",
    "comfy.sd.VAE": "in annotations; see ATTRIBUTES",
    "comfy.sd.load_clip": "model_options: umt5xxl_class, umt5xxl_model_config, initial_device",
    "comfy.text_encoders.wan.UMT5XXlModel": "base of the mapped encoder; CLIP.load_sd sets can_assign_sd on it",
    "comfy.taesd.taehv.MemBlock": "(x, the x of the frame before) -> the same shape",
    "comfy.taesd.taehv.TAEHV": "type of first_stage_model that vae_chunks.py takes apart; its decoder is a Sequential",
    "comfy.taesd.taehv.TGrow": "[B, C, h, w] -> [B * stride, C, h, w], the frames of an item one after another; stride",
    "comfy.utils.ProgressBar": "interrupts where it is updated",
    "comfy.utils.convert_old_quants": "(tensors, metadata)",
    "comfy.utils.load_torch_file": "maps a safetensors file",
    "comfy.utils.repeat_to_batch_size": "along dimension 0",
    "comfy.utils.weight_dtype": "the commonest type",
    "comfy.weight_adapter.lora.LoRAAdapter": "(keys, (up, down, alpha, None, None, None)); alpha is divided by the "
    "rank",
    "comfy_execution.graph_utils.GraphBuilder": "nodes of an expansion",
    "comfy_execution.utils.get_executing_context": "None, or an object with prompt_id",
    "comfy_extras.nodes_custom_sampler.Noise_RandomNoise": "seed; draws on the CPU",
    "comfy_extras.nodes_custom_sampler.SamplerCustomAdvanced.execute": "(noise, guider, sampler, sigmas, latent); "
    "first of its result is the LATENT",
    "comfy_kitchen.registry.registry.get_implementation": "of adaln and apply_rope1",
    "comfy_kitchen.registry.registry.is_available": "of the backends cuda and hip",
    "comfy_kitchen.registry.registry.list_backends": "names, each with `disabled`",
    "comfy_kitchen.registry.registry.validate_backend_for_call": "success, failed_param, failure_reason",
    "comfy_kitchen.tensor.BaseLayoutParams": "base of both layouts' Params",
    "comfy_kitchen.tensor.QuantizedLayout": "base of both layouts",
    "comfy_kitchen.tensor.register_layout_class": "(name, class)",
    "comfyui_version.__version__": "part of the key of a cached prompt; decides whether the pack loads",
    "execution.nodes.NODE_CLASS_MAPPINGS": "which nodes are installed",
    "server.PromptServer.instance": "set when the server is made",
}
AT_RUN_TIME = {"server.PromptServer.instance"}  # not there before a server runs

# Overridden method: its parameters on the hosts above, oldest first where they differ. What overrides it has to take
# what it takes.
OVERRIDES = {
    "comfy.conds.CONDRegular.can_concat": "self, other",
    "comfy.conds.CONDRegular.concat": "self, others",
    "comfy.conds.CONDRegular.process_cond": "self, batch_size, **kwargs",
    "comfy.ldm.wan.model.Head.forward": "self, x, e",
    "comfy.ldm.wan.model.WanAttentionBlock.__init__": "self, cross_attn_type, dim, ffn_dim, num_heads, window_size=, "
    "qk_norm=, cross_attn_norm=, eps=, operation_settings=",
    "comfy.ldm.wan.model.WanAttentionBlock.forward": "self, x, e, freqs, context, context_img_len=, "
    "transformer_options=",
    "comfy.ldm.wan.model.WanModel.__init__": "self, model_type=, patch_size=, text_len=, in_dim=, dim=, ffn_dim=, "
    "freq_dim=, text_dim=, out_dim=, num_heads=, num_layers=, window_size=, "
    "qk_norm=, cross_attn_norm=, eps=, flf_pos_embed_token_number=, "
    "in_dim_ref_conv=, wan_attn_block_class=, image_model=, device=, "
    "dtype=, operations=",
    "comfy.ldm.wan.model.WanModel.forward_orig": "self, x, t, context, clip_fea=, freqs=, transformer_options=, "
    "**kwargs",
    "comfy.ldm.wan.model.WanSelfAttention.__init__": "self, dim, num_heads, window_size=, qk_norm=, eps=, kv_dim=, "
    "operation_settings=",
    "comfy.ldm.wan.model.WanSelfAttention.forward": "self, x, freqs, transformer_options=",
    "comfy.model_base.BaseModel.__init__": "self, model_config, model_type=, device=, unet_model=",
    "comfy.model_base.BaseModel._apply_model": "self, x, t, c_concat=, c_crossattn=, control=, transformer_options=, "
    "**kwargs",
    "comfy.model_base.BaseModel.extra_conds_shapes": "self, **kwargs",
    "comfy.model_base.BaseModel.memory_required": "self, input_shape, cond_shapes=",
    "comfy.model_base.BaseModel.process_timestep": "self, timestep, **kwargs",
    "comfy.model_base.BaseModel.state_dict_for_saving": "self, unet_state_dict, clip_state_dict=, vae_state_dict=, "
    "clip_vision_state_dict=",
    "comfy.model_base.WAN21.__init__": "self, model_config, model_type=, image_to_video=, device=",
    "comfy.model_base.WAN21.extra_conds": "self, **kwargs",
    "comfy.ops.mixed_precision_ops().Linear._forward": "self, input, weight, bias",
    "comfy.ops.mixed_precision_ops().Linear._load_from_state_dict": "self, *args",
    "comfy.ops.mixed_precision_ops().Linear.forward": "self, input, *args, **kwargs",
    "comfy.ops.mixed_precision_ops().Linear.set_weight": "self, weight, inplace_update=, seed=, return_weight=, "
    "**kwargs",
    "comfy.ops.mixed_precision_ops().Linear.state_dict": "self, *args, destination=, prefix=, **kwargs",
    "comfy.samplers.CFGGuider.__init__": "self, model_patcher",
    "comfy.samplers.CFGGuider.inner_sample": "self, noise, latent_image, device, sampler, sigmas, denoise_mask, "
    "callback, disable_pbar, seed, latent_shapes=",
    "comfy.samplers.CFGGuider.inner_set_conds": "self, conds",
    "comfy.samplers.CFGGuider.outer_sample": "self, noise, latent_image, sampler, sigmas, denoise_mask=, callback=, "
    "disable_pbar=, seed=, latent_shapes=",
    "comfy.model_sampling.ModelSamplingDiscreteFlow.__init__": "self, model_config=",
    "comfy.model_sampling.ModelSamplingDiscreteFlow.percent_to_sigma": "self, percent",
    "comfy.model_sampling.ModelSamplingDiscreteFlow.set_parameters": "self, shift=, timesteps=, multiplier=",
    "comfy.model_sampling.ModelSamplingDiscreteFlow.sigma": "self, timestep",
    "comfy.samplers.CFGGuider.outer_predict_noise": "self, x, timestep, model_options=, seed=",
    "comfy.samplers.CFGGuider.predict_noise": "self, x, timestep, model_options=, seed=",
    "comfy.samplers.CFGGuider.sample": "self, noise, latent_image, sampler, sigmas, denoise_mask=, callback=, "
    "disable_pbar=, seed=",
    "comfy.samplers.CFGGuider.set_cfg": "self, cfg",
    "comfy.samplers.CFGGuider.set_conds": "self, positive, negative",
    "comfy.sd1_clip.SDClipModel.load_sd": "self, sd",
    "comfy_api.latest._input.video_types.VideoInput.get_dimensions": "self",
    "comfy_api.latest._input.video_types.VideoInput.get_duration": "self",
    "comfy_api.latest._input.video_types.VideoInput.get_frame_count": "self",
    "comfy_api.latest._input.video_types.VideoInput.get_frame_rate": "self",
    "comfy_api.latest._input_impl.video_types.VideoFromComponents.__init__": "self, components, bit_depth=",
    "comfy_api.latest._input_impl.video_types.VideoFromComponents.get_components": "self",
    "comfy_api.latest._input_impl.video_types.VideoFromFile.__init__": "self, file, *, start_time=, duration=",
    "comfy_api.latest._input_impl.video_types.VideoFromFile.get_components": "self",
    "comfy_api.latest._input_impl.video_types.VideoFromFile.save_to": (
        "self, path, format=, codec=, metadata=, bit_depth=, crf=",
        "self, path, format=, codec=, metadata=, bit_depth=, crf=, color_space=",
    ),
    "comfy_kitchen.tensor.base.BaseLayoutParams._tensor_fields": "self",
    "comfy_kitchen.tensor.base.QuantizedLayout.dequantize": "qdata, params",
    "comfy_kitchen.tensor.base.QuantizedLayout.get_plain_tensors": "qtensor",
    "comfy_kitchen.tensor.base.QuantizedLayout.quantize": "tensor, **kwargs",
    "comfy_kitchen.tensor.base.QuantizedLayout.state_dict_tensors": "qdata, params",
}

# Overridden methods that are not called as ComfyUI's are, each with the reason.
OWN_SIGNATURE = {
    "comfy.samplers.CFGGuider.set_conds": "called by the pack's nodes alone; `negative` may be left out",
    "comfy.samplers.CFGGuider.set_cfg": "called by the pack's nodes alone; one number for each expert",
}

# Overridden methods whose arguments ComfyUI passes by name where they have a default, so that **kwargs takes them.
BY_NAME = (
    "comfy.model_sampling.ModelSamplingDiscreteFlow.set_parameters",
    "comfy_api.latest._input_impl.video_types.VideoFromFile.save_to",
)

# ComfyUI's code that the pack's follows, stands in for or relies on in detail: the pack's part, then the digest of each
# known form (of the code without comments and docstrings), oldest first.
COPIES = {
    "comfy.ldm.wan.model.WanModel.forward_orig": (
        "TurboWanModel.forward_orig: the sinusoid has the dtype of x, the blocks are called in order",
        "c6d4f6a411ff",
    ),
    "comfy.ldm.wan.model.WanSelfAttention.forward": ("TurboSelfAttention.attend", "3933f0b4c6d4"),
    "comfy.ldm.wan.model.WanT2VCrossAttention.forward": ("fused.add_cross_attention", "18b9c7be0c56"),
    "comfy.ldm.wan.model.WanAttentionBlock.__init__": (
        "TurboBlock: its self_attn is replaced, its ffn is [Linear, GELU, Linear]",
        "b23fe1738efc",
        "2c3bcdb85b4e",
    ),
    "comfy.ldm.wan.model.WanAttentionBlock.forward": ("TurboBlock.forward", "72a7f7fb6b87"),
    "comfy.ldm.wan.model.Head.forward": ("TurboHead.forward", "1c1a04b4cc20"),
    "comfy.ldm.modules.attention.wrap_attn": ("features.dense_attention", "9aa9e5b4377d", "b718a53ee9c8"),
    "comfy.model_base.BaseModel._apply_model": ("TurboWAN._apply_model and process_timestep", "92d6911c06d8"),
    "comfy.samplers.CFGGuider.inner_set_conds": ("ExpertGuider.inner_set_conds", "237fbdf6248d"),
    "comfy.samplers.CFGGuider.sample": ("SecondExpert", "a24598c99242"),
    "comfy.samplers.CFGGuider.outer_sample": ("SecondExpert", "a87c5d729568"),
    "comfy.samplers.CFGGuider.inner_sample": ("SecondExpert", "ce00bde0e468", "858a8ec28fb9"),
    "comfy.samplers.CFGGuider.predict_noise": ("SecondExpert", "e97ca5650b89"),
    "comfy.sd.load_diffusion_model_state_dict": ("load.load_model", "878649c3c7cd"),
    "comfy.ops.mixed_precision_ops().Linear._load_from_state_dict": ("the quantized linears", "8d4a21de42b0"),
    "comfy.ops.mixed_precision_ops().Linear.state_dict": ("the quantized linears", "17b2fc8e8eed"),
    "comfy.ops.mixed_precision_ops().Linear.forward": ("the quantized linears", "3c5fb2d6dc76", "9b2688bdd1eb"),
    "comfy.ops.mixed_precision_ops().Linear.forward_comfy_cast_weights": (
        "the quantized linears",
        "284d9022f3c0",
        "f29a2689debc",
    ),
    "comfy.ops.mixed_precision_ops().Linear.set_weight": ("the NF4 linear", "5a919b9bf5e3"),
    "comfy.model_patcher.ModelPatcher.load": (
        "nf4.patch_at_run_time: what the callback is given, weight_function",
        "eb0d20fe979e",
    ),
    "comfy.model_patcher.ModelPatcher.partially_unload": (
        "the NF4 linear: a patch that is added twice",
        "38094feeabd1",
    ),
    "comfy.sd.VAE.decode": ("decode.decode: batches, types", "24036cdf4599", "1e03642ad821"),
    "comfy.ldm.wan.vae.CausalConv3d.forward": ("WanDecoder: a first frame, frames behind others", "a4a7367cc481"),
    "comfy.ldm.wan.vae.Decoder3d.forward": ("WanDecoder", "ae87cc8c6644"),
    "comfy.ldm.wan.vae.Decoder3d.run_up": ("WanDecoder", "3dcb8092f120"),
    "comfy.ldm.wan.vae.RMS_norm.forward": ("kernels: rms_norm_silu_pad", "da59699a09d6"),
    "comfy.ldm.wan.vae.Resample.forward": ("WanDecoder: upsample2d, upsample3d", "c641a4ef4c98"),
    "comfy.ldm.wan.vae.ResidualBlock.forward": ("WanDecoder", "70d23227068a"),
    "comfy.ldm.wan.vae.WanVAE.decode": ("vae_chunks: the chunks", "f759935e620e"),
    "comfy.ldm.wan.vae2_2.WanVAE.decode": ("vae_chunks: the chunks", "b0ee9a6490fc"),
    "comfy.taesd.taehv.TAEHV.decode": (
        "vae_chunks: which frames are dropped, the format",
        "b1e6eeb75218",
        "3f397631b9c2",
    ),
    "comfy.taesd.taehv.apply_model_with_memblocks": ("vae_chunks: the loop over layers", "33e8f8ead744"),
    "comfy_api.latest._input_impl.video_types.VideoFromComponents.save_to": (
        "DecodedVideo, which feeds it frames that are read one by one",
        "51055e175af6",
        "9425c87c36e7",
    ),
    "nodes.VAEDecode.decode": ("decode.stock_decode", "399e994d4ce7"),
    "nodes.CLIPLoader.load_clip": ("text_encode.text_conditioning", "c64a7ad19cb7"),
    "nodes.CLIPTextEncode.encode": ("text_encode.text_conditioning", "e96535b2fd97"),
}

# Class (or what makes one): the attributes that the pack reads, or sets.
ATTRIBUTES = {
    "comfy.ldm.wan.model.WanModel": "blocks out_dim patch_size",
    "comfy.ldm.wan.model.WanAttentionBlock": "cross_attn cross_attn_norm eps ffn modulation norm1 norm2 "
    "norm3 num_heads qk_norm self_attn window_size",
    "comfy.ldm.wan.model.VaceWanAttentionBlock": "block_id",
    "comfy.model_base.WAN21": "image_to_video",
    "comfy.ldm.wan.model.WanSelfAttention": "head_dim k norm_k norm_q num_heads o q v",
    "comfy.ldm.wan.model.Head": "modulation",
    "torch.nn.LayerNorm": "elementwise_affine eps",
    "torch.nn.Linear": "in_features",
    "torch.nn.Module": "_forward_hooks _forward_pre_hooks",
    "comfy.model_base.BaseModel": "current_patcher diffusion_model get_dtype_inference latent_format "
    "load_model_weights process_latent_in",
    "comfy.latent_formats.LatentFormat": "spacial_downscale_ratio",
    "comfy.supported_models_base.BASE": "custom_operations get_model quant_config sampling_settings "
    "set_inference_dtype unet_config",
    "comfy.model_patcher.ModelPatcher": "add_callback_with_key add_object_patch add_patches add_wrapper_with_key "
    "attachments object_patches patches_uuid remove_wrappers_with_key clone_base_uuid remove_callbacks_with_key "
    "cached_patcher_init cleanup get_additional_models_with_key get_free_memory get_model_object hook_mode "
    "hook_patches is_dynamic load_device loaded_ram_size loaded_size model_dtype model_size offload_device patches "
    "pre_run restore_hook_patches set_additional_models set_attachments",
    "comfy.model_patcher.ModelPatcherDynamic": "get_non_dynamic_delegate",
    "comfy.model_sampling.ModelSamplingDiscreteFlow": "multiplier shift",
    "comfy.samplers.CFGGuider": "conds original_conds",
    "comfy.samplers.KSamplerX0Inpaint": "inner_model",
    "comfy.ops.CastWeightBiasOp": "bias_function",
    "comfy.ops.disable_weight_init.Linear": "bias in_features",
    "comfy_kitchen.tensor.QuantizedTensor": "_layout_cls _params _qdata",
    "comfy_kitchen.tensor.BaseLayoutParams": "orig_dtype",
    "comfy.conds.CONDRegular": "_copy_with cond",
    "comfy.sd.VAE": "disable_offload first_stage_model latent_channels latent_dim memory_used_decode output_device "
    "process_output "
    "spacial_compression_decode throw_exception_if_invalid upscale_ratio vae_dtype vae_output_dtype",
    "comfy.ldm.wan.vae.WanVAE": "conv2 decoder",
    "comfy.ldm.wan.vae.Decoder3d": "conv1 middle upsamples",
    "comfy.ldm.wan.vae.RMS_norm": "gamma",
    "comfy.ldm.wan.vae.Resample": "resample time_conv",
    "comfy.ldm.wan.vae.ResidualBlock": "residual shortcut",
    "comfy.taesd.taehv.TAEHV": "frames_to_trim image_channels patch_size process_in",
    "comfy.sd.CLIP": "encode_from_tokens_scheduled tokenize",
    "comfy.sd1_clip.SDClipModel": "transformer",
    "comfy.utils.ProgressBar": "update_absolute",
    "comfy_execution.graph_utils.GraphBuilder": "finalize",
    "comfy_execution.graph_utils.Node": "out",
    "comfy_api.latest._io.HiddenHolder": "unique_id",
    "comfy_api.latest._io.Input": "optional",
    "comfy_api.latest._io.Schema": "hidden",
    "comfy_api.latest._io._ComfyNodeBaseInternal": "GET_SCHEMA",
    "comfy_api.latest._ui.PreviewText": "as_dict",
    "server.PromptServer": "add_on_prompt_handler send_progress_text",
    "comfy_api.latest.ComfyAPI_latest": "node_replacement",
}

# Marks that ComfyUI sets on layers, and the module that sets them.
MARKS = {
    "_v": "comfy.model_patcher",
    "comfy_force_cast_weights": "comfy.model_patcher",
    "comfy_patched_weights": "comfy.model_patcher",
    "weight_comfy_model_dtype": "comfy.ops",
    "bias_comfy_model_dtype": "comfy.ops",
    "_lowvram_function": "comfy.model_patcher",
    "can_assign_sd": "comfy.sd",
}
# Names that the sources read and that no class above has.
ELSEWHERE = {
    "_fused_rms_norm": "of torch, for CUDA from 2.9; optional",
    "_full_precision_mm": "of mixed_precision_ops().Linear, which its forward reads; optional",
    "pre_quant_scale": "the same",
    "input_scale": "the same",
    "convrot": "of the Params of comfy_kitchen's TensorWiseINT8Layout; optional",
    "transposed": "the same",
    "comfy_attention": "of WanSelfAttention, from about ComfyUI 0.40; optional",
    "CastBiasWeightContext": "of comfy.ops, from 0.34; optional",
    "NodeReplace": "of comfy_api.latest.io; optional",
    "Input": "of io.Custom, public",
    "Output": "of io.Custom, public",
    "weight_lowvram_function": "the mark _lowvram_function of a weight",
    "images": "of VideoComponents, public",
    "uuid": "of torch's properties of a CUDA device",
    "_replace": "of a NamedTuple of the pack",
    "local_attn": "the pack's own",
    "proj_l": "the pack's own",
}

# Core's nodes in workflows, blueprints, replaced nodes and expansions, and where they are.
NODES = {
    "BasicScheduler": "comfy_extras.nodes_custom_sampler",
    "CLIPLoader": "nodes",
    "CLIPTextEncode": "nodes",
    "CLIPVisionEncode": "nodes",
    "CLIPVisionLoader": "nodes",
    "CreateVideo": "comfy_extras.nodes_video",
    "EmptyHunyuanLatentVideo": "comfy_extras.nodes_hunyuan",
    "GetVideoComponents": "comfy_extras.nodes_video",
    "ImageFromBatch": "comfy_extras.nodes_images",
    "ImageScale": "nodes",
    "KSamplerSelect": "comfy_extras.nodes_custom_sampler",
    "LoadImage": "nodes",
    "LoadVideo": "comfy_extras.nodes_video",
    "PreviewAny": "comfy_extras.nodes_preview_any",
    "RandomNoise": "comfy_extras.nodes_custom_sampler",
    "SamplerCustomAdvanced": "comfy_extras.nodes_custom_sampler",
    "SaveAnimatedWEBP": "comfy_extras.nodes_images",
    "SaveVideo": "comfy_extras.nodes_video",
    "SaveWEBM": "comfy_extras.nodes_video",
    "StringConcatenate": "comfy_extras.nodes_string",
    "TextGenerate": "comfy_extras.nodes_textgen",
    "VAELoader": "nodes",
    "WanFirstLastFrameToVideo": "comfy_extras.nodes_wan",
    "WanImageToVideo": "comfy_extras.nodes_wan",
    "WanVaceToVideo": "comfy_extras.nodes_wan",
}
