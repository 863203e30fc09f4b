# The package's own index leads a type checker through every model; these are what is used here.
from transformers.models.auto.configuration_auto import AutoConfig as AutoConfig
from transformers.models.auto.modeling_auto import AutoModel as AutoModel
from transformers.models.auto.tokenization_auto import AutoTokenizer as AutoTokenizer
from transformers.models.clip.configuration_clip import CLIPConfig as CLIPConfig
from transformers.models.clip.configuration_clip import CLIPTextConfig as CLIPTextConfig
from transformers.models.clip.configuration_clip import CLIPVisionConfig as CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import (
    CLIPImageProcessorPil as CLIPImageProcessorPil,
)
from transformers.models.clip.modeling_clip import CLIPModel as CLIPModel
from transformers.models.clip.modeling_clip import CLIPTextModel as CLIPTextModel
from transformers.models.clip.modeling_clip import (
    CLIPTextModelWithProjection as CLIPTextModelWithProjection,
)
from transformers.models.clip.modeling_clip import (
    CLIPVisionModelWithProjection as CLIPVisionModelWithProjection,
)
from transformers.models.clip.tokenization_clip import CLIPTokenizer as CLIPTokenizer
from transformers.models.swin.configuration_swin import SwinConfig as SwinConfig
from transformers.models.swin.modeling_swin import SwinModel as SwinModel
from transformers.models.t5.configuration_t5 import T5Config as T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel as T5EncoderModel
from transformers.models.vit.configuration_vit import ViTConfig as ViTConfig
from transformers.models.vit.image_processing_pil_vit import (
    ViTImageProcessorPil as ViTImageProcessorPil,
)
from transformers.models.vit.modeling_vit import ViTModel as ViTModel
