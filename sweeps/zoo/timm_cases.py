"""Small variants of the model families of timm."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

import timm
from torch import nn

from sweeps.zoo.case import NUM_CLASSES, Case, image_batch

__all__ = ["CASES"]

_VGG = [16, "M", 32, "M", 64, 64, "M", 128, "M"]


def _build(family: str, name: str, size: int, overrides: dict[str, Any]) -> nn.Module:
    module = importlib.import_module(f"timm.models.{family}")
    if inspect.isclass(getattr(module, name)):  # its variants do not let themselves be made smaller
        return getattr(module, name)(num_classes=NUM_CLASSES, **overrides)
    build = functools.partial(timm.create_model, name, pretrained=False, num_classes=NUM_CLASSES, **overrides)
    try:
        return build(img_size=size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return build()


def _entry(family: str, name: str, size: int, title: str = "", **overrides: Any) -> Case:
    shown = [f"{key}={getattr(value, '__name__', value)}" for key, value in overrides.items()]
    return Case(
        name=title or name,
        family=family,
        library="timm",
        note=", ".join([f"{size} px", *shown]),
        build=functools.partial(_build, family, name, size, overrides),
        draw=functools.partial(image_batch, size),
    )


CASES = (
    _entry("beit", "beit_base_patch16_224", 64, embed_dim=64, depth=2, num_heads=2),
    _entry("beit", "beitv2_base_patch16_224", 64, embed_dim=64, depth=2, num_heads=2),
    _entry("byoanet", "halonet26t", 64, self_attn_kwargs={"block_size": 2, "halo_size": 1}),
    _entry("byoanet", "lambda_resnet26rpt_256", 64),
    _entry("byoanet", "botnet26t_256", 64),
    _entry("byobnet", "test_byobnet", 64),
    _entry("byobnet", "repvgg_a0", 64),
    _entry("byobnet", "mobileone_s1", 64),
    _entry("byobnet", "gernet_s", 64),
    _entry("byobnet", "resnet33ts", 64),
    _entry("cait", "cait_xxs24_224", 64, embed_dim=64, depth=2, num_heads=4),
    _entry("coat", "coat_tiny", 64),
    _entry("coat", "coat_lite_tiny", 64),
    _entry("convit", "convit_tiny", 64, depth=3, local_up_to_layer=2),
    _entry("convmixer", "ConvMixer", 64, dim=64, depth=4, kernel_size=7),
    _entry("convnext", "test_convnext", 64),
    _entry("convnext", "test_convnext2", 64),
    _entry("convnext", "convnext_zepto_rms", 64),
    _entry("convnext", "convnextv2_atto", 64),
    _entry("cpubone", "cpubone_nano", 64),
    _entry("crossvit", "crossvit_tiny_240", 120),
    _entry("csatv2", "csatv2", 64),
    _entry("cspnet", "cs3darknet_s", 64),
    _entry("cspnet", "darknet17", 64),
    _entry("cspnext", "cspnext_tiny", 64),
    _entry("davit", "davit_tiny", 64, depths=(1, 1, 1, 1), embed_dims=(24, 48, 96, 192), num_heads=(1, 2, 4, 8)),
    _entry("deepseek_vit", "deepseek_vit_412m", 224, embed_dim=64, depth=2, num_heads=2),
    _entry("deit", "deit_tiny_patch16_224", 64, depth=3),
    _entry("deit", "deit_tiny_distilled_patch16_224", 64, depth=3),
    _entry("deit", "deit3_small_patch16_224", 64, depth=2, embed_dim=96, num_heads=3),
    _entry("densenet", "densenet121", 64, growth_rate=8, block_config=(2, 2, 2, 2)),
    _entry("dla", "dla46x_c", 64),
    _entry("dla", "dla34", 64),
    _entry("dpn", "dpn48b", 64),
    _entry("edgenext", "edgenext_xx_small", 64),
    _entry("efficientformer", "efficientformer_l1", 224),
    _entry("efficientformer_v2", "efficientformerv2_s0", 64),
    _entry("efficientnet", "test_efficientnet", 64),
    _entry("efficientnet", "test_efficientnet_gn", 64),
    _entry("efficientnet", "test_efficientnet_ln", 64),
    _entry("efficientnet", "test_efficientnet_evos", 64),
    _entry("efficientnet", "mnasnet_small", 64),
    _entry("efficientnet", "mobilenetv2_035", 64),
    _entry("efficientnet", "tinynet_e", 64),
    _entry("efficientnet", "mixnet_s", 64),
    _entry("efficientvim", "efficientvim_m1", 64),
    _entry("efficientvit_mit", "efficientvit_b0", 64),
    _entry("efficientvit_msra", "efficientvit_m0", 64),
    _entry("eva", "eva02_tiny_patch14_224", 64, depth=2),
    _entry("eva", "vit_tiny_patch16_dinov3_qkvb", 64, depth=2),
    _entry("eva", "vit_pe_core_tiny_patch16_384", 64, depth=2),
    _entry("fasternet", "fasternet_t0", 64),
    _entry("fastvit", "fastvit_t8", 64),
    _entry("focalnet", "FocalNet", 64, embed_dim=24, depths=(1, 1, 2, 1)),
    _entry("gcvit", "GlobalContextVit", 64, img_size=64, embed_dim=32, depths=(1, 1, 2, 1), num_heads=(2, 4, 8, 16)),
    _entry("gemma4_vit", "gemma4_vit_167m", 64, embed_dim=64, depth=2, num_heads=2),
    _entry("ghostnet", "ghostnet_050", 64),
    _entry("ghostnet", "ghostnetv2_100", 64),
    _entry("ghostnet", "ghostnetv3_050", 64),
    _entry("hardcorenas", "hardcorenas_a", 64),
    _entry("hgnet", "hgnetv2_b0", 64),
    _entry("hiera", "hiera_tiny_224", 64, embed_dim=24, stages=(1, 1, 2, 1)),
    _entry("hieradet_sam2", "hieradet_small", 64, embed_dim=24, stages=(1, 1, 2, 1)),
    _entry("hrnet", "hrnet_w18_small", 64),
    _entry("iformer", "iformer_t", 64),
    _entry("inception_next", "inception_next_atto", 64),
    _entry("inception_resnet_v2", "inception_resnet_v2", 96),
    _entry("inception_v3", "inception_v3", 96),
    _entry("inception_v4", "inception_v4", 96),
    _entry("lcnetv2", "lcnetv2_small", 64),
    _entry("levit", "levit_128s", 64),
    _entry("levit", "levit_conv_128s", 64),
    _entry("lowformer", "lowformer_b0", 64),
    _entry("mambaout", "test_mambaout", 64),
    _entry("maxxvit", "test_coatnet", 64),
    _entry("maxxvit", "test_maxvit", 64),
    _entry("maxxvit", "coatnext_nano_rw_224", 64),
    _entry("metaformer", "poolformer_s12", 64),
    _entry("metaformer", "convformer_s18", 64),
    _entry("metaformer", "caformer_s18", 64),
    _entry("metaformer", "poolformerv2_s12", 64),
    _entry("mlp_mixer", "mixer_s16_224", 64),
    _entry("mlp_mixer", "resmlp_12_224", 64),
    _entry("mlp_mixer", "gmlp_ti16_224", 64),
    _entry("mlp_mixer", "gmixer_12_224", 64),
    _entry("mobilenetv3", "mobilenetv3_small_050", 64),
    _entry("mobilenetv3", "lcnet_035", 64),
    _entry("mobilenetv3", "mobilenetv4_conv_small_035", 64),
    _entry("mobilenetv3", "fbnetv3_b", 64),
    _entry("mobilenetv5", "mobilenetv5_base", 64, channel_multiplier=0.1),
    _entry("mobilevit", "mobilevit_xxs", 64),
    _entry("mobilevit", "mobilevitv2_050", 64),
    _entry("mvitv2", "mvitv2_tiny", 64),
    _entry("naflexvit", "naflexvit_base_patch16_gap", 64, embed_dim=64, depth=2, num_heads=2),
    _entry("nasnet", "nasnetalarge", 64, stem_size=16, num_features=384),
    _entry("nest", "nest_tiny", 64),
    _entry("nextvit", "nextvit_small", 64),
    _entry("nfnet", "test_nfnet", 64),
    _entry("nfnet", "nf_regnet_b0", 64),
    _entry("nfnet", "nf_resnet26", 64, depths=(1, 1, 1, 1)),
    _entry("pit", "pit_ti_224", 64, depth=[1, 1, 1]),
    _entry("pvt_v2", "pvt_v2_b0", 64),
    _entry("qwen3_vit", "qwen3_vit_88m", 64, embed_dim=64, depth=2, num_heads=2),
    _entry("rdnet", "rdnet_tiny", 64),
    _entry("regnet", "regnetx_002", 64),
    _entry("regnet", "regnety_002", 64),
    _entry("regnet", "regnetz_005", 64),
    _entry("repghost", "repghostnet_050", 64),
    _entry("repvit", "repvit_m1", 64),
    _entry("res2net", "res2net50_14w_8s", 64, layers=[1, 1, 1, 1]),
    _entry("res2net", "res2next50", 64, layers=[1, 1, 1, 1]),
    _entry("resnest", "resnest14d", 64),
    _entry("resnet", "test_resnet", 64),
    _entry("resnet", "resnet10t", 64),
    _entry("resnet", "seresnext26t_32x4d", 64, layers=[1, 1, 1, 1]),
    _entry("resnet", "ecaresnet26t", 64, layers=[1, 1, 1, 1]),
    _entry("resnet", "resnetblur50", 64, layers=[1, 1, 1, 1]),
    _entry("resnetv2", "resnetv2_18", 64, layers=[1, 1, 1, 1]),
    _entry("resnetv2", "resnetv2_50d_gn", 64, layers=[1, 1, 1, 1]),
    _entry("rexnet", "rexnet_100", 64),
    _entry("selecsls", "selecsls42", 64),
    _entry("senet", "legacy_seresnet18", 64, layers=[1, 1, 1, 1]),
    _entry("senet", "legacy_senet154", 64, layers=[1, 1, 1, 1]),
    _entry(
        "sequencer", "sequencer2d_s", 64, layers=[1, 1, 1, 1], embed_dims=[32, 64, 64, 64], hidden_sizes=[8, 16, 16, 16]
    ),
    _entry("shvit", "shvit_s1", 64),
    _entry("sknet", "skresnet18", 64, layers=[1, 1, 1, 1]),
    _entry("starnet", "starnet_s050", 64),
    _entry("swiftformer", "swiftformer_xs", 64),
    _entry(
        "swin_transformer", "swin_tiny_patch4_window7_224", 64, embed_dim=24, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 8)
    ),
    _entry("swin_transformer_v2", "swinv2_tiny_window8_256", 64, embed_dim=24, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 8)),
    _entry("swin_transformer_v2_cr", "swinv2_cr_tiny_224", 64, embed_dim=24, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 8)),
    _entry("tiny_vit", "tiny_vit_5m_224", 64, depths=(1, 1, 2, 1)),
    _entry("tnt", "tnt_s_patch16_224", 64, depth=2),
    _entry("tresnet", "tresnet_m", 64, layers=[1, 1, 1, 1]),
    _entry("twins", "twins_svt_small", 64, depths=(1, 1, 2, 1)),
    _entry("twins", "twins_pcpvt_small", 64, depths=(1, 1, 1, 1)),
    _entry("vgg", "VGG", 64, cfg=_VGG, mlp_ratio=0.02),
    _entry("vgg", "VGG", 64, title="VGG_bn", cfg=_VGG, mlp_ratio=0.02, norm_layer=nn.BatchNorm2d),
    _entry("visformer", "visformer_tiny", 64),
    _entry("vision_transformer", "test_vit", 64),
    _entry("vision_transformer", "test_vit2", 64),
    _entry("vision_transformer", "test_vit3", 64),
    _entry("vision_transformer", "test_vit4", 64),
    _entry("vision_transformer_hybrid", "vit_tiny_r_s16_p8_224", 64, depth=2),
    _entry("vision_transformer_relpos", "test_vit_relpos", 64),
    _entry("vision_transformer_relpos", "vit_srelpos_small_patch16_224", 64, depth=2, embed_dim=64, num_heads=2),
    _entry(
        "vision_transformer_sam",
        "samvit_base_patch16_224",
        64,
        depth=2,
        embed_dim=64,
        num_heads=2,
        global_attn_indexes=(1,),
    ),
    _entry("vitamin", "vitamin_small_224", 64, depth=2),
    _entry("volo", "volo_d1_224", 64),
    _entry("vovnet", "ese_vovnet19b_slim_dw", 64),
    _entry("xception", "legacy_xception", 64),
    _entry("xception_aligned", "xception41p", 64),
    _entry("xcit", "xcit_nano_12_p16_224", 64, depth=2),
)
"""By family, in the order of the alphabet."""
